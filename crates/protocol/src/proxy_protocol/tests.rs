//! Headers by table, by an encoder of another author, in every split, cut short, and of arbitrary
//! bytes.

use proptest::prelude::*;
use proxy_header::{ProxiedAddress, ProxyHeader, Tlv};

use super::*;

const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\n\r\n";

/// A header of version 2.
fn binary(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let length = u16::try_from(block.len()).expect("a short block").to_be_bytes();
    [V2, &[command, family], &length, block].concat()
}

/// `PEER LOCAL`, or `local`.
fn text_of(header: &Header) -> String {
    match header {
        Header::Local => "local".to_owned(),
        Header::Proxied { peer, local } => format!("{peer} {local}"),
    }
}

/// What is read from a header with a request behind it, in one piece and byte by byte.
fn read(header: &[u8]) -> Result<String, Malformed> {
    let bytes = [header, REQUEST].concat();
    let at_once = parse(&bytes);
    let by_byte = (0..=bytes.len()).map(|end| parse(&bytes[..end])).find(|one| *one != Ok(None));
    assert_eq!(Some(&at_once), by_byte.as_ref(), "{header:?}");
    let (found, length) = at_once?.expect("a whole header");
    assert_eq!(length, header.len());
    Ok(text_of(&found))
}

#[test]
fn lines_of_version_1_are_understood() {
    for (line, expected) in [
        ("TCP4 192.0.2.1 198.51.100.7 4711 443", "192.0.2.1:4711 198.51.100.7:443"),
        ("TCP4 255.255.255.255 0.0.0.0 65535 0", "255.255.255.255:65535 0.0.0.0:0"),
        ("TCP6 2001:db8::1 ::1 1 2", "[2001:db8::1]:1 [::1]:2"),
        ("TCP6 ::ffff:192.0.2.1 ::1 1 2", "[::ffff:192.0.2.1]:1 [::1]:2"),
        ("UNKNOWN", "local"),
        ("UNKNOWN ffff::1 ffff::2 65535 65535 and more", "local"),
    ] {
        assert_eq!(read(format!("PROXY {line}\r\n").as_bytes()).as_deref(), Ok(expected), "{line}");
    }
    let longest = format!("PROXY UNKNOWN {}\r\n", "x".repeat(LINE_BYTES_MAX - 16));
    assert_eq!((longest.len(), read(longest.as_bytes()).as_deref()), (107, Ok("local")));
}

#[test]
fn other_lines_are_refused() {
    for line in [
        "TCP4 192.0.2.1 198.51.100.7 4711",
        "TCP4 192.0.2.1 198.51.100.7 4711 443 1",
        "TCP4 192.0.2.1 198.51.100.7 4711 443 ",
        "TCP4  192.0.2.1 198.51.100.7 4711 443",
        "TCP4 192.0.2.01 198.51.100.7 4711 443",
        "TCP4 192.0.2.1 198.51.100.7 04711 443",
        "TCP4 192.0.2.1 198.51.100.7 +4711 443",
        "TCP4 192.0.2.1 198.51.100.7 4711 65536",
        "TCP4 2001:db8::1 ::1 1 2",
        "TCP6 192.0.2.1 198.51.100.7 4711 443",
        "TCP6 fe80::1%eth0 ::1 1 2",
        "UDP4 192.0.2.1 198.51.100.7 4711 443",
        "tcp4 192.0.2.1 198.51.100.7 4711 443",
        "UNKNOWNS",
        "UNKNOWN \u{e9}",
        "UNKNOWN \t",
        "",
        "TCP4",
    ] {
        assert_eq!(read(format!("PROXY {line}\r\n").as_bytes()), Err(Malformed), "{line}");
    }
    let too_long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(LINE_BYTES_MAX - 15));
    for bytes in [too_long.as_bytes(), b"PROXY UNKNOWN\n", b"PROXYTCP4", b"POST / HTTP/1.1\r\n"] {
        assert_eq!(read(bytes), Err(Malformed), "{bytes:?}");
    }
}

#[test]
fn headers_of_version_2_are_understood() {
    let v4 = [192, 0, 2, 1, 198, 51, 100, 7, 0x12, 0x67, 1, 0xbb];
    let mut v6 = [0; 36];
    (v6[15], v6[31], v6[33], v6[35]) = (1, 2, 3, 4);
    let mut unix = [0; 216];
    unix[..4].copy_from_slice(b"/a/b");
    unix[109..112].copy_from_slice(b"web");
    let with_extensions = [&v4[..], &[0x04, 0, 3, 9, 9, 9], &[0x03, 0, 4, 1, 2, 3, 4]].concat();
    for (command, family, block, expected) in [
        (0x21, 0x11, &v4[..], "192.0.2.1:4711 198.51.100.7:443"),
        (0x21, 0x11, &with_extensions, "192.0.2.1:4711 198.51.100.7:443"),
        (0x21, 0x21, &v6, "[::1]:3 [::2]:4"),
        (0x21, 0x31, &unix, "unix:/a/b unix:@web"),
        (0x21, 0x31, &[0; 216], "unix: unix:"),
        // Datagrams, and what is not specified.
        (0x21, 0x12, &v4, "local"),
        (0x21, 0x22, &v6, "local"),
        (0x21, 0x32, &unix, "local"),
        (0x21, 0x00, &[], "local"),
        (0x21, 0x00, &[1; 40], "local"),
        // The balancer itself: the rest means nothing.
        (0x20, 0x00, &[], "local"),
        (0x20, 0x11, &v4, "local"),
        (0x20, 0xff, &[7], "local"),
    ] {
        let header = binary(command, family, block);
        assert_eq!(read(&header).as_deref(), Ok(expected), "{command:#x} {family:#x}");
    }
    let longest = binary(0x20, 0, &[0; HEADER_BYTES_MAX - 16]);
    assert_eq!(read(&longest).as_deref(), Ok("local"));
}

#[test]
fn other_binary_headers_are_refused() {
    for (command, family, block) in [
        (0x21, 0x11, &[1; 11][..]),
        (0x21, 0x21, &[1; 35]),
        (0x21, 0x31, &[1; 215]),
        (0x21, 0x41, &[1; 300]),
        (0x21, 0x13, &[1; 300]),
        (0x22, 0x11, &[1; 12]),
        (0x11, 0x11, &[1; 12]),
        (0x21, 0x11, &[1; HEADER_BYTES_MAX - 15]),
    ] {
        assert_eq!(
            read(&binary(command, family, block)),
            Err(Malformed),
            "{command:#x} {family:#x}"
        );
    }
    for bytes in [&b"\r\n\r\nGET / HTTP/1.1\r\n"[..], b"\0", b"\x16\x03\x01\x02\x00", REQUEST] {
        assert_eq!(read(bytes), Err(Malformed), "{bytes:?}");
    }
}

fn addresses() -> impl Strategy<Value = (SocketAddr, SocketAddr)> {
    let v4 = |ip: [u8; 4], port| SocketAddr::new(Ipv4Addr::from(ip).into(), port);
    let v6 = |ip: [u8; 16], port| SocketAddr::new(Ipv6Addr::from(ip).into(), port);
    prop_oneof![
        any::<([u8; 4], u16, [u8; 4], u16)>().prop_map(move |(a, b, c, d)| (v4(a, b), v4(c, d))),
        any::<([u8; 16], u16, [u8; 16], u16)>().prop_map(move |(a, b, c, d)| (v6(a, b), v6(c, d))),
    ]
}

proptest! {
    #[test]
    fn what_another_encoder_writes_is_read_however_it_is_split(
        (peer, local) in addresses(),
        is_binary in any::<bool>(),
        name in proptest::option::of("[a-z.]{1,200}"),
        rest in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut header = ProxyHeader::with_address(ProxiedAddress::stream(peer, local));
        let mut bytes = Vec::new();
        if is_binary {
            if let Some(name) = name {
                header.append_tlv(Tlv::Authority(name.into()));
                header.append_tlv(Tlv::Crc32c(17));
            }
            header.encode_v2(&mut bytes).expect("it fits");
        } else {
            header.encode_v1(&mut bytes).expect("it fits");
        }
        let length = bytes.len();
        bytes.extend_from_slice(&rest);
        for end in 0..=bytes.len() {
            let expected = (end >= length).then(|| {
                let (peer, local) = (Endpoint::Inet(peer), Endpoint::Inet(local));
                (Header::Proxied { peer, local }, length)
            });
            prop_assert_eq!(parse(&bytes[..end]), Ok(expected));
        }
    }

    #[test]
    fn more_bytes_change_no_verdict(
        start in prop_oneof![
            Just(Vec::new()), Just(LINE_START.into()), Just(b"PROXY TCP4 1.1.1.1 ".to_vec()),
            Just(SIGNATURE.to_vec()), Just([V2, &[0x21, 0x11, 0]].concat()),
        ],
        rest in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let bytes = [start, rest].concat();
        let mut verdict = Ok(None);
        for end in 0..=bytes.len() {
            let next = parse(&bytes[..end]);
            if verdict != Ok(None) {
                prop_assert_eq!(&next, &verdict);
            }
            if let Ok(Some((_, length))) = next {
                prop_assert!(length <= end.min(HEADER_BYTES_MAX));
            }
            verdict = next;
        }
    }
}

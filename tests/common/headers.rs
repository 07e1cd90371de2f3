//! Headers of the PROXY protocol as a balancer sends them, and what is none.

/// Of version 2, around a command, a family with its transport, and a block.
fn binary(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let length = u16::try_from(block.len()).expect("a short block").to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n", &[command, family][..], &length, block].concat()
}

/// Headers, each with the client and the address that it names.
pub(crate) fn headers() -> Vec<(Vec<u8>, Option<[&'static str; 2]>)> {
    let v4 = [192, 0, 2, 1, 198, 51, 100, 7, 0x12, 0x67, 1, 0xbb];
    let mut v6 = [0; 36];
    (v6[0], v6[1], v6[15], v6[31]) = (0x20, 0x01, 1, 2);
    let authority = [&[2, 0, 11][..], b"example.com"].concat();
    vec![
        (
            b"PROXY TCP4 192.0.2.1 198.51.100.7 4711 443\r\n".to_vec(),
            Some(["192.0.2.1:4711", "198.51.100.7:443"]),
        ),
        (
            b"PROXY TCP6 2001:db8:0::1 ::2 65535 1\r\n".to_vec(),
            Some(["[2001:db8::1]:65535", "[::2]:1"]),
        ),
        (b"PROXY UNKNOWN\r\n".to_vec(), None),
        (
            binary(0x21, 0x11, &[&v4[..], &authority].concat()),
            Some(["192.0.2.1:4711", "198.51.100.7:443"]),
        ),
        (binary(0x21, 0x21, &v6), Some(["[2001::1]:0", "[::2]:0"])),
        (binary(0x20, 0, &[]), None),
    ]
}

/// What clients send that are no balancers. The last one waits for more than comes.
pub(crate) fn without_header() -> Vec<Vec<u8>> {
    vec![
        b"GET / HTTP/1.1\r\nHost: test\r\n\r\n".to_vec(),
        b"PROXY TCP4 192.0.2.1 198.51.100.7 4711\r\n".to_vec(),
        [b"PROXY UNKNOWN ", &[b'x'; 200][..]].concat(),
        binary(0x21, 0x11, &[1; 11]),
        binary(0x22, 0, &[]),
        b"\x16\x03\x01\x02\x00".to_vec(),
        b"PROXY TCP4 192.0".to_vec(),
    ]
}

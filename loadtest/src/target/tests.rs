//! Every form of a target, what is refused, and that targets read back from what they print.

use proptest::prelude::*;

use super::*;

fn parsed(text: &str) -> Target {
    text.parse().expect(text)
}

#[test]
fn every_documented_form_is_read() {
    for (text, authority, path, scheme) in [
        ("127.0.0.1:8000", "127.0.0.1:8000", "/", Scheme::Any),
        ("host:80/a/b?c", "host:80", "/a/b?c", Scheme::Any),
        ("http://host", "host:80", "/", Scheme::Http),
        ("http://[::1]:81/x", "[::1]:81", "/x", Scheme::Http),
        ("tcp://host:7", "host:7", "/", Scheme::Tcp),
        ("https://host", "host:443", "/", Scheme::Https),
        ("https://host:8443/a", "host:8443", "/a", Scheme::Https),
    ] {
        let target = parsed(text);
        assert_eq!(target.endpoint, Endpoint::Tcp(authority.into()), "{text}");
        assert_eq!((target.path.as_str(), target.scheme), (path, scheme), "{text}");
    }
    let target = parsed("unix:/run/a:b.sock:/x");
    assert_eq!(target.endpoint, Endpoint::Unix("/run/a:b.sock".into()));
    assert_eq!(target.path, "/x");
}

#[test]
fn urls_are_read_as_browsers_read_them() {
    for (text, shown) in [
        ("http://h:1/a?b=c#d", "http://h:1/a?b=c"),
        ("http://h:1#d", "http://h:1/"),
        ("http://h:1?key=val", "http://h:1/?key=val"),
        ("h:1?key=val#x", "h:1/?key=val"),
        ("HTTP://h:1/x", "http://h:1/x"),
        ("HtTpS://EXAMPLE.com/X", "https://example.com:443/X"),
        ("  http://h:1/x\n", "http://h:1/x"),
        ("http://h:1/a/../b", "http://h:1/b"),
        ("http://h:1/\u{e9}?\u{e9}", "http://h:1/%C3%A9?%C3%A9"),
        ("http://b\u{fc}cher.example/", "http://xn--bcher-kva.example:80/"),
        ("http://h:1/?next=http://other/", "http://h:1/?next=http://other/"),
        ("h:1/?next=http://other/", "h:1/?next=http://other/"),
        ("http://h:/", "http://h:80/"),
        ("http://127.1:8/", "http://127.0.0.1:8/"),
        ("unix:/s:/a?b#c", "unix:/s:/a?b"),
        ("http://[fe80::1%eth0]:8/", "http://[fe80::1%eth0]:8/"),
        ("http://[fe80::1%25eth0]/x", "http://[fe80::1%eth0]:80/x"),
        ("[fe80::1%2]:8", "[fe80::1%2]:8/"),
    ] {
        assert_eq!(parsed(text).to_string(), shown, "{text}");
    }
}

#[test]
fn a_host_header_has_no_scope_and_no_port_that_the_scheme_implies() {
    for (text, host) in [
        ("http://h/", "h"),
        ("http://h:80/", "h"),
        ("http://h:81/", "h:81"),
        ("https://h/", "h"),
        ("https://h:80/", "h:80"),
        ("h:80", "h:80"),
        ("http://[fe80::1%eth0]/", "[fe80::1]"),
        ("http://[fe80::1%25eth0]:8/", "[fe80::1]:8"),
        ("unix:/s", "localhost"),
    ] {
        assert_eq!(parsed(text).host(), host, "{text}");
    }
    assert_eq!(parsed("https://[::1]:8/").server_name().as_deref(), Some("::1"));
    assert_eq!(parsed("https://h./").server_name().as_deref(), Some("h"));
    assert_eq!(parsed("http://h/").server_name(), None);
}

#[test]
fn a_user_becomes_an_authorization_that_nothing_prints() {
    let target = parsed("http://al%20ice:s%3Ac@h:1/x");
    let credentials = target.credentials.as_ref().expect("a user");
    // base64 of "al ice:s:c".
    assert_eq!(credentials.authorization(), "Basic YWwgaWNlOnM6Yw==");
    assert_eq!(target.to_string(), "http://h:1/x");
    assert!(!format!("{target:?}").contains("YWwg"));
    assert_eq!(parsed("user@h:1").to_string(), "h:1/");
    assert_eq!(parsed("http://h:1/@x").credentials, None);
}

#[test]
fn what_cannot_be_meant_is_refused_with_a_hint() {
    let long = format!("unix:/{}", "x".repeat(107));
    for text in [
        "",
        "host",
        "host:0",
        "host:99999",
        ":80",
        "::1:80",
        "ftp://host:1",
        "tcp://host:1/path",
        "tcp://user@host:1",
        "tcp://host",
        "unix:",
        "unix:@",
        "host:1/a b",
        "http://h/a\nb",
        "http://",
        "http://[fe80::1%]/",
        "http://[fe80::1%a/b]/",
        "http://[::g]/",
        &long,
    ] {
        let error = text.parse::<Target>().expect_err(text);
        assert_eq!(error.exit_code(), 2, "{text}");
        assert!(!error.to_string().contains('\n'), "{text}");
        assert!(!error.hint().is_empty(), "{text}");
    }
}

#[test]
fn numeric_addresses_are_resolved_without_asking() {
    let addresses = parsed("http://127.0.0.1:8/").resolve().expect("an address");
    assert_eq!(addresses, [Address::Tcp("127.0.0.1:8".parse().expect("an address"))]);
    let addresses = parsed("[::1]:8").resolve().expect("an address");
    assert_eq!(addresses, [Address::Tcp("[::1]:8".parse().expect("an address"))]);
    let scoped = parsed("http://[fe80::1%1]:8/").resolve().expect("an address");
    assert!(matches!(&scoped[..], [Address::Tcp(SocketAddr::V6(v6))] if v6.scope_id() == 1));
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused_and_reads_back(text in "\\PC{0,40}") {
        if let Ok(target) = text.parse::<Target>() {
            let again = target.to_string().parse::<Target>();
            let shown = Target { credentials: None, ..target };
            prop_assert_eq!(again.expect("its own text"), shown);
        }
    }

    #[test]
    fn targets_read_back(
        text in "(https?://|tcp://|)[a-z]{1,9}:[1-9][0-9]{0,3}(/[a-z:/]{0,9})?(\\?[a-z=]{0,5})?",
    ) {
        if let Ok(target) = text.parse::<Target>() {
            let again = target.to_string().parse::<Target>();
            prop_assert_eq!(again.expect("its own text"), target);
        }
    }
}

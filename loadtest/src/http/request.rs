//! The bytes of a request (RFC 9112, section 3). Pure.

use crate::settings::Settings;
use crate::target::Target;

/// Methods whose requests say that their body is empty, as RFC 9110 (8.6) asks for.
const METHODS_WITH_BODY: [&str; 3] = ["POST", "PUT", "PATCH"];

/// The bytes of one request to `target`. Header lines of the settings replace what is added here.
pub(crate) fn request(settings: &Settings, target: &Target, says_last: bool) -> Vec<u8> {
    let method = settings.method();
    let mut head = format!("{method} {} HTTP/1.1\r\n", target.path);
    let named = |name: &str| {
        let given = |line: &String| {
            line.split_once(':').is_some_and(|(word, _)| word.eq_ignore_ascii_case(name))
        };
        settings.headers.iter().any(given)
    };
    if !named("host") {
        head.push_str(&format!("Host: {}\r\n", target.host()));
    }
    if let Some(credentials) = &target.credentials
        && !named("authorization")
    {
        head.push_str(&format!("Authorization: {}\r\n", credentials.authorization()));
    }
    for line in &settings.headers {
        head.push_str(line);
        head.push_str("\r\n");
    }
    if says_last && !named("connection") {
        head.push_str("Connection: close\r\n");
    }
    if settings.body_bytes > 0 || METHODS_WITH_BODY.contains(&method) {
        head.push_str(&format!("Content-Length: {}\r\n", settings.body_bytes));
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    match &settings.body {
        Some(body) => bytes.extend_from_slice(body),
        None => bytes.resize(bytes.len() + settings.body_bytes as usize, b'x'),
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Load;

    fn sent(url: &str, change: impl FnOnce(&mut Settings)) -> String {
        let target = url.parse().expect("a target");
        let mut settings = Settings::new(target, Load::Closed { connections: 1 });
        change(&mut settings);
        String::from_utf8(request(&settings, &settings.target, false)).expect("text")
    }

    #[test]
    fn a_url_becomes_a_request_line_and_a_host() {
        let text = sent("http://user:pw@h/a?b=c#d", |_| ());
        let head = "GET /a?b=c HTTP/1.1\r\nHost: h\r\nAuthorization: Basic dXNlcjpwdw==\r\n\r\n";
        assert_eq!(text, head);
    }

    #[test]
    fn header_lines_replace_what_would_be_added() {
        let text = sent("http://user:pw@h/", |settings| {
            settings.headers = vec!["HOST: other".into(), "authorization: Bearer x".into()];
        });
        assert_eq!(text, "GET / HTTP/1.1\r\nHOST: other\r\nauthorization: Bearer x\r\n\r\n");
    }

    #[test]
    fn lengths_are_computed_and_an_empty_post_says_so() {
        let text = sent("http://h/", |settings| {
            settings.method = Some("PUT".into());
            settings.body = Some(b"{}".as_slice().into());
            settings.body_bytes = 2;
        });
        assert_eq!(text, "PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}");
        let text = sent("http://h/", |settings| settings.body = Some([].into()));
        assert_eq!(text, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n");
        let text = sent("http://h/", |settings| settings.method = Some("DELETE".into()));
        assert_eq!(text, "DELETE / HTTP/1.1\r\nHost: h\r\n\r\n");
    }
}

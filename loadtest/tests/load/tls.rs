//! TLS against a real server of the same library: certificates, names, resumption, failures.

use std::collections::BTreeMap;
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::process::Output;
use std::sync::{Arc, Mutex};

use crate::common::{
    Directory, Port, Seen, Server, Stream, command, complaints, hello, http, read_request,
    read_whole_request,
};
use loadtest::Report;
use loadtest::tally::ErrorKind;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned, SupportedProtocolVersion};

/// A certificate authority, the file that names it, and a server's certificate of it.
struct Authority {
    file: String,
    config: Arc<ServerConfig>,
    _directory: Directory,
}

impl Authority {
    /// An authority whose server proves these names.
    fn new(names: &[&str], versions: &[&'static SupportedProtocolVersion]) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let directory = Directory::new();
        // Authorities of one name would be taken for each other.
        params.distinguished_name.push(DnType::CommonName, directory.file("authority"));
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("an authority");
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(names).expect("names");
        let certificate = params.signed_by(&key, &issuer).expect("a certificate");
        let file = directory.file("ca.pem");
        std::fs::write(&file, issuer.pem()).expect("a new file");
        let config = server_config(versions, certificate.der().clone(), &key);
        Self { file, config, _directory: directory }
    }

    /// Runs the command with this authority as the only root.
    fn output(&self, words: &str) -> Output {
        command(words)
            .env("SSL_CERT_FILE", &self.file)
            .env_remove("SSL_CERT_DIR")
            .output()
            .expect("the command starts")
    }

    /// The same with `--json`, and the report read.
    fn run(&self, words: &str) -> (Report, Output) {
        let output = self.output(&format!("{words} --json"));
        let errors = String::from_utf8_lossy(&output.stderr);
        let report = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}, stderr {errors}"));
        (report, output)
    }

    fn good(&self, words: &str) -> Report {
        let (report, output) = self.run(words);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        report
    }
}

fn server_config(
    versions: &[&'static SupportedProtocolVersion],
    certificate: CertificateDer<'static>,
    key: &KeyPair,
) -> Arc<ServerConfig> {
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("versions that the library has")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], private)
        .expect("a certificate and its key");
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = rustls::crypto::ring::Ticketer::new().expect("randomness");
    Arc::new(config)
}

/// What the handshakes were like: their kind, the name asked for, the protocol agreed on.
type Handshakes = Arc<Mutex<BTreeMap<String, usize>>>;

/// A TLS server that answers requests, and what its handshakes were like.
fn server(authority: &Authority) -> (Server, Handshakes) {
    let handshakes = Handshakes::default();
    let (config, seen_there) = (Arc::clone(&authority.config), Arc::clone(&handshakes));
    let server = Server::start(move |stream, seen| {
        let connection = ServerConnection::new(Arc::clone(&config)).expect("a sound config");
        let mut stream = StreamOwned::new(connection, stream);
        while stream.conn.is_handshaking() {
            if stream.conn.complete_io(&mut stream.sock).is_err() {
                return;
            }
        }
        let name = stream.conn.server_name().unwrap_or("no name");
        let protocol = stream.conn.alpn_protocol().unwrap_or_default();
        let protocol = String::from_utf8_lossy(protocol).into_owned();
        let words = format!("{:?} {name} {protocol}", stream.conn.handshake_kind());
        *seen_there.lock().expect("no panic holds it").entry(words).or_default() += 1;
        serve(&mut stream, seen);
    });
    (server, handshakes)
}

/// A TLS server that reads one request and answers it with what `answer` does.
fn answering<T>(authority: &Authority, answer: T) -> Server
where
    T: Fn(&mut StreamOwned<ServerConnection, Box<dyn Stream>>) + Send + Sync + 'static,
{
    let config = Arc::clone(&authority.config);
    Server::start(move |stream, seen| {
        let connection = ServerConnection::new(Arc::clone(&config)).expect("a sound config");
        let mut stream = StreamOwned::new(connection, stream);
        let mut reader = BufReader::new(&mut stream);
        if read_request(&mut reader, seen).is_some() {
            answer(&mut stream);
        }
    })
}

#[test]
fn an_answer_may_end_with_the_session_or_with_the_connection() {
    const ANSWER: &[u8] = b"HTTP/1.0 200 OK\r\n\r\nuntil the end";
    let authority = Authority::new(&["localhost"], &BOTH);
    // One waits for the client to close, as `openssl s_server` does; the other one says nothing.
    let polite = answering(&authority, |stream| {
        stream.write_all(ANSWER).expect("the client reads");
        stream.conn.send_close_notify();
        let _ = stream.flush();
        let _ = stream.sock.read_to_end(&mut Vec::new());
    });
    let curt = answering(&authority, |stream| {
        stream.write_all(ANSWER).expect("the client reads");
    });
    for server in [polite, curt] {
        let report = authority.good(&format!("-n 10 -c 2 {}", url(server.address)));
        assert_eq!((report.totals.completed, report.totals.failed), (10, 0));
    }
    let silent = answering(&authority, |stream| {
        stream.conn.send_close_notify();
        let _ = stream.flush();
        let _ = stream.sock.read_to_end(&mut Vec::new());
    });
    let (report, _) = authority.run(&format!("-n 4 -c 1 {}", url(silent.address)));
    assert_eq!(report.totals.errors[&ErrorKind::ClosedEarly], 4);
}

fn serve(stream: &mut (impl Read + Write), seen: &Seen) {
    let mut reader = BufReader::new(stream);
    while let Some((head, body)) = read_whole_request(&mut reader, seen) {
        let answer = match body.len() {
            0 => "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n".to_owned(),
            // A large body is answered with one.
            _ => {
                let large = "z".repeat(300_000);
                format!("HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n{large}")
            }
        };
        let closes = head.contains("Connection: close");
        if reader.get_mut().write_all(answer.as_bytes()).is_err() || closes {
            return;
        }
    }
}

fn count(handshakes: &Handshakes, word: &str) -> usize {
    let handshakes = handshakes.lock().expect("no panic holds it");
    let matching = handshakes.iter().filter(|(words, _)| words.contains(word));
    matching.map(|(_, count)| count).sum()
}

const BOTH: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];

fn url(address: SocketAddrV4) -> String {
    format!("https://localhost:{}/path?q=1", address.port())
}

#[test]
fn requests_travel_encrypted_whatever_the_load() {
    for version in BOTH {
        let authority = Authority::new(&["localhost"], &[version]);
        let (server, handshakes) = server(&authority);
        let url = url(server.address);
        for words in [
            "-n 30 -c 3",
            "-n 30 -c 3 --requests-per-connection unlimited",
            "-n 30 -c 2 --requests-per-connection 10 --pipeline 4",
            "-n 30 --rate 300 --hold 2",
            "-n 30 --rate 300 --requests-per-connection unlimited --close rst",
        ] {
            let before = server.seen.requests();
            let report = authority.good(&format!("{words} {url}"));
            assert_eq!((report.totals.completed, report.totals.failed), (30, 0), "{words}");
            assert_eq!(server.seen.requests() - before, 30, "{words}");
            assert_eq!(report.totals.status["2xx"], 30, "{words}");
            assert_eq!(report.latency.connect.count, report.totals.connected, "{words}");
        }
        let (head, _) = server.seen.last();
        assert!(head.starts_with("GET /path?q=1 HTTP/1.1\r\nHost: localhost:"), "{head}");
        let all = count(&handshakes, "");
        assert_eq!(count(&handshakes, "localhost http/1.1"), all, "{handshakes:?}");
    }
}

#[test]
fn large_bodies_travel_both_ways() {
    let authority = Authority::new(&["localhost"], &BOTH);
    let (server, _) = server(&authority);
    let words = "-n 20 -c 2 --body-bytes 200000 --requests-per-connection 5";
    let report = authority.good(&format!("{words} {}", url(server.address)));
    assert_eq!(report.totals.completed, 20);
    assert!(report.totals.sent_bytes >= 20 * 200_000);
    assert!(report.totals.received_bytes >= 20 * 300_000);
}

#[test]
fn sessions_are_resumed_unless_that_is_off() {
    for version in BOTH {
        let authority = Authority::new(&["localhost"], &[version]);
        let (server, handshakes) = server(&authority);
        authority.good(&format!("-n 20 -c 1 {}", url(server.address)));
        assert_eq!(count(&handshakes, ""), 20);
        assert!(count(&handshakes, "Resumed") >= 10, "{handshakes:?}");
        handshakes.lock().expect("no panic holds it").clear();
        authority.good(&format!("-n 20 -c 1 --tls-resumption off {}", url(server.address)));
        assert_eq!(count(&handshakes, "Resumed"), 0, "{handshakes:?}");
        assert_eq!(count(&handshakes, "Full"), 20, "{handshakes:?}");
    }
}

#[test]
fn an_address_is_proven_without_a_name_being_sent() {
    let authority = Authority::new(&["127.0.0.1"], &BOTH);
    let (server, handshakes) = server(&authority);
    let report = authority.good(&format!("-n 5 -c 1 https://{}/", server.address));
    assert_eq!(report.totals.completed, 5);
    assert_eq!(count(&handshakes, "no name"), 5, "{handshakes:?}");
}

#[test]
fn a_wrong_certificate_is_refused_unless_any_is_accepted() {
    let authority = Authority::new(&["other.example"], &BOTH);
    let stranger = Authority::new(&["localhost"], &BOTH);
    let (server, _) = server(&authority);
    let url = url(server.address);
    for (root, word) in [(&authority, "not valid for"), (&stranger, "UnknownIssuer")] {
        let (report, output) = root.run(&format!("-n 5 -c 1 {url}"));
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(report.totals.errors[&ErrorKind::TlsFailed], 5);
        let lines = complaints(&output);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains("TLS failed") && lines[0].contains(word), "{lines:?}");
        assert!(lines[0].contains("--insecure"), "{lines:?}");
    }
    for version in BOTH {
        let authority = Authority::new(&["other.example"], &[version]);
        let (server, _) = self::server(&authority);
        let words = format!("-n 5 -c 1 --insecure {}", self::url(server.address));
        assert_eq!(stranger.good(&words).totals.completed, 5);
    }
}

#[test]
fn a_certificate_that_is_its_own_authority_is_refused_with_a_remedy() {
    let mut params = CertificateParams::new(["localhost".to_owned()]).expect("a name");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let mut authority = Authority::new(&["localhost"], &BOTH);
    let key = KeyPair::generate().expect("a key");
    let certificate = params.self_signed(&key).expect("a certificate");
    std::fs::write(&authority.file, certificate.pem()).expect("a file of this test");
    authority.config = server_config(&BOTH, certificate.der().clone(), &key);
    let (server, _) = server(&authority);
    let (_, output) = authority.run(&format!("-n 3 -c 1 {}", url(server.address)));
    assert_eq!(output.status.code(), Some(1));
    let line = &complaints(&output)[0];
    assert!(line.contains("CA:TRUE") && line.contains("basicConstraints"), "{line}");
    authority.good(&format!("-n 3 -c 1 -k {}", url(server.address)));
}

#[test]
fn a_server_without_tls_is_a_tls_failure() {
    let authority = Authority::new(&["localhost"], &BOTH);
    // It answers what it takes for a request as many servers do.
    let plain = Server::start(|mut stream, _| {
        let _ = stream.read(&mut [0; 1000]);
        hello(&mut *stream);
    });
    let closing = Server::start(|mut stream, _| drop(stream.read(&mut [0; 1000])));
    for server in [plain, closing] {
        let (report, output) = authority.run(&format!("-n 3 -c 1 {}", url(server.address)));
        assert_eq!(output.status.code(), Some(1));
        let errors = &report.totals.errors;
        assert!(errors[&ErrorKind::TlsFailed] + errors[&ErrorKind::Reset] == 3, "{errors:?}");
        if let Some(example) = report.totals.error_examples.get(&ErrorKind::TlsFailed) {
            let told = example.contains("http:// port") || example.contains("closed within");
            assert!(told, "{example}");
        }
    }
}

#[test]
fn a_handshake_that_does_not_end_times_out() {
    let authority = Authority::new(&["localhost"], &BOTH);
    let server = Server::start(|mut stream, _| {
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let words = "-n 3 -c 1 --timeout 200ms";
    let (report, output) = authority.run(&format!("{words} {}", url(server.address)));
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(report.totals.errors[&ErrorKind::ConnectTimeout], 3);
    let output = authority.output(&format!("--hold 2 {words} {}", url(server.address)));
    assert_eq!(output.status.code(), Some(1));
    assert!(complaints(&output)[0].contains("open 2 idle connections"));
}

#[test]
fn plain_and_encrypted_servers_take_turns() {
    let authority = Authority::new(&["localhost"], &BOTH);
    let (encrypted, _) = server(&authority);
    let plain = Server::start(http(|stream, _| hello(stream)));
    let urls = format!("{} http://{}/", url(encrypted.address), plain.address);
    let report = authority.good(&format!("-n 40 -c 4 {urls}"));
    assert_eq!(report.totals.completed, 40);
    assert_eq!((encrypted.seen.requests(), plain.seen.requests()), (20, 20));
}

#[test]
fn a_missing_root_file_is_the_environments_fault() {
    let port = Port::new();
    let output = command(&format!("-n 1 -c 1 https://{}/", port.address))
        .env("SSL_CERT_FILE", "/nowhere/at/all.pem")
        .env_remove("SSL_CERT_DIR")
        .output()
        .expect("the command starts");
    assert_eq!(output.status.code(), Some(3));
    let lines = complaints(&output);
    assert!(lines.len() == 1 && lines[0].contains("root certificates"), "{lines:?}");
    assert!(TcpStream::connect(port.address).is_err(), "nothing was loaded");
}

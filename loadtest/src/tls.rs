//! TLS for `https://` targets: bytes in, bytes out. Knows no socket.
//!
//! Owns the one configuration of a run (roots, session resumption) and each connection's session.
//! rustls does the protocol; what the ring has received goes in, what it must send comes out.

use std::io::{self, Read, Write};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, InvalidMessage, RootCertStore,
    SignatureScheme,
};

use crate::error::Error;

/// Sessions that are remembered for resumption; the oldest are forgotten first.
const SESSIONS_MAX: usize = 1024;

/// The TLS configuration that all connections of a run share.
#[derive(Clone, Debug)]
pub(crate) struct Connector(Arc<ClientConfig>);

impl Connector {
    /// Reads the system's roots, unless any certificate is accepted.
    pub(crate) fn new(insecure: bool, resumption: bool) -> Result<Self, Error> {
        let provider = Arc::new(ring::default_provider());
        let schemes = provider.signature_verification_algorithms.supported_schemes();
        let builder = ClientConfig::builder_with_provider(Arc::<CryptoProvider>::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::environment("set up TLS", error.to_string(), "report this"))?;
        let mut config = match insecure {
            true => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AcceptAny(schemes)))
                .with_no_client_auth(),
            false => builder.with_root_certificates(roots()?).with_no_client_auth(),
        };
        // A server that also speaks HTTP/2 must not choose it.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = match resumption {
            true => Resumption::in_memory_sessions(SESSIONS_MAX),
            false => Resumption::disabled(),
        };
        Ok(Self(Arc::new(config)))
    }

    /// A session with the server of this name, its first message ready to be taken.
    pub(crate) fn open(&self, name: &ServerName<'static>) -> Result<Session, String> {
        let connection = ClientConnection::new(Arc::clone(&self.0), name.clone());
        let mut connection = connection.map_err(|error| error.to_string())?;
        connection.set_buffer_limit(None);
        Ok(Session { connection, ended: false })
    }
}

/// The name that a server's certificate must prove.
pub(crate) fn server_name(host: &str) -> Result<ServerName<'static>, Error> {
    ServerName::try_from(host.to_owned()).map_err(|_| {
        Error::usage(
            format!("https://{host}: a certificate cannot prove this name"),
            "give a host name of letters, digits, dots and hyphens, or an address",
        )
    })
}

fn roots() -> Result<RootCertStore, Error> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(found.certs);
    if usable > 0 {
        return Ok(roots);
    }
    let cause = match found.errors.first() {
        Some(error) => error.to_string(),
        None => "the system has none".into(),
    };
    let hint = "install the ca-certificates package, set SSL_CERT_FILE to a file of PEM \
        certificates, or give --insecure";
    Err(Error::environment("read root certificates", cause, hint))
}

/// One connection's TLS session.
#[derive(Debug)]
pub(crate) struct Session {
    connection: ClientConnection,
    ended: bool,
}

impl Session {
    /// True until the handshake is complete.
    pub(crate) fn handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// True once the server has said that it sends nothing more.
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    /// Takes in received bytes and appends what they decrypt to.
    pub(crate) fn receive(&mut self, mut bytes: &[u8], plain: &mut Vec<u8>) -> Result<(), String> {
        while !bytes.is_empty() {
            match self.connection.read_tls(&mut bytes) {
                // Nothing is read after the server's closing alert.
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => return Err(error.to_string()),
            }
            let state = self.connection.process_new_packets().map_err(|error| explain(&error))?;
            let (start, length) = (plain.len(), state.plaintext_bytes_to_read());
            plain.resize(start + length, 0);
            let read = self.connection.reader().read_exact(&mut plain[start..]);
            read.map_err(|error| error.to_string())?;
            self.ended |= state.peer_has_closed();
        }
        Ok(())
    }

    /// Encrypts bytes to send. They come out with the next [`Self::take`].
    pub(crate) fn send(&mut self, plain: &[u8]) {
        self.connection
            .writer()
            .write_all(plain)
            .expect("a buffer without a limit takes everything");
    }

    /// Appends everything that must be sent now: handshake messages, alerts, encrypted bytes.
    pub(crate) fn take(&mut self, outgoing: &mut Vec<u8>) {
        while self.connection.wants_write() {
            let written: io::Result<usize> = self.connection.write_tls(outgoing);
            written.expect("a vector takes everything");
        }
    }

    /// Ends the session: its closing alert comes out with the next [`Self::take`].
    pub(crate) fn close(&mut self) {
        self.connection.send_close_notify();
    }
}

/// Why a session failed. Two reasons that people often meet get words that say what to do.
fn explain(error: &rustls::Error) -> String {
    let text = error.to_string();
    match error {
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "the server does not answer in TLS: is it an http:// port?".into()
        }
        rustls::Error::InvalidCertificate(_) if text.contains("CaUsedAsEndEntity") => {
            "the certificate is an authority's own (CA:TRUE), as `openssl req -x509` makes it; add \
             -addext basicConstraints=CA:FALSE there"
                .into()
        }
        _ => text,
    }
}

/// Accepts every certificate and every signature, as `--insecure` asks for.
#[derive(Debug)]
struct AcceptAny(Vec<SignatureScheme>);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}

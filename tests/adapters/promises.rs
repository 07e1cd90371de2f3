//! What may go to another thread, held by the compiler: a promise that is broken does not build.

use std::future::Future;

use clusterlb::adapter::tokio::{Listener, Stream};
use tokio::io::{AsyncRead, AsyncWrite};

const fn goes_to_threads<T: Send + 'static>() {}
const fn is_shared_by_threads<T: Send + Sync + 'static>() {}
const fn is_a_stream<T: AsyncRead + AsyncWrite + Unpin>() {}
const fn needs_no_order<T: Future + Send>(_: &T) {}

const _: () = {
    is_shared_by_threads::<clusterlb::Cluster>();
    is_shared_by_threads::<clusterlb::WorkerHandle>();
    is_shared_by_threads::<clusterlb::Worker>();
    is_shared_by_threads::<clusterlb::Listener>();
    is_shared_by_threads::<clusterlb::Datagrams>();
    is_shared_by_threads::<clusterlb::Connection>();
    is_shared_by_threads::<clusterlb::Guard>();
    is_shared_by_threads::<clusterlb::Completion>();
    is_shared_by_threads::<clusterlb::Message>();
    is_shared_by_threads::<clusterlb::Event>();
    is_shared_by_threads::<clusterlb::Tracked<std::net::TcpStream>>();
    is_shared_by_threads::<clusterlb::Error>();
    goes_to_threads::<clusterlb::Events>();
    goes_to_threads::<clusterlb::Messages>();
    is_shared_by_threads::<Listener>();
    is_shared_by_threads::<Stream>();
    is_a_stream::<Stream>();
};

/// Futures as well: a task may move between threads while it waits.
#[expect(dead_code, reason = "it is only compiled")]
fn what_is_awaited(listener: &Listener, worker: &clusterlb::Worker) {
    needs_no_order(&listener.accept());
    needs_no_order(&listener.ended());
    needs_no_order(&worker.disconnected());
}

//! The admin thread's connections: how many at once, and for how long.
//!
//! Owns the bounds. One connection carries one request. A head that is incomplete at its time limit
//! gets a 408; an answer that is not read in time is dropped.

use std::future::poll_fn;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, header};
use clusterlb_sys::limits;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nix::unistd::geteuid;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{sleep, timeout};

use super::Run;
use super::agent;
use super::door::{Access, Door, Entrance, REST, is_rebound};
use super::routes::{self, Following};
use super::views::RefusedView;

/// Connections of one address at once: as many as this part of the primary's descriptors, within
/// these bounds. Further ones wait in the kernel, behind clients that may hang.
const DESCRIPTORS_PART: u64 = 16;
const CONNECTIONS: [u64; 2] = [128, 1024];
/// Time limit of a request's head.
const HEAD_LIMIT: Duration = Duration::from_secs(5);
/// Time limit for reading an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Largest request head.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Time that connections get at the end of the run to finish.
const LAST_LIMIT: Duration = Duration::from_secs(1);

/// Serves until the sender of `ended` drops, then lets connections finish.
pub(super) async fn serve(
    doors: Vec<Door>,
    agents: Vec<Door>,
    run: Arc<Run>,
    ended: oneshot::Receiver<()>,
) {
    let app = routes::router(Arc::clone(&run));
    let connections_max = connections_max(limits::descriptor_limits().map_or(0, |(soft, _)| soft));
    let mut rooms = Vec::new();
    let mut loops = Vec::new();
    for door in doors {
        // Registering fails only for lack of descriptors; the other addresses are still served.
        let Ok((entrance, allow_actions)) = Entrance::new(door) else { continue };
        let room = Arc::new(Semaphore::new(connections_max as usize));
        rooms.push(Arc::clone(&room));
        loops.push(tokio::spawn(accept(entrance, allow_actions, app.clone(), room)));
    }
    for door in agents {
        if let Ok((entrance, _)) = Entrance::new(door) {
            loops.push(tokio::spawn(agent::serve(entrance, Arc::clone(&run))));
        }
    }
    // The sender only ever drops.
    let _ = ended.await;
    loops.iter().for_each(tokio::task::JoinHandle::abort);
    let all_gone = async {
        for room in rooms {
            // The semaphore is never closed.
            let _ = room.acquire_many(connections_max).await;
        }
    };
    let _ = timeout(LAST_LIMIT, all_gone).await;
}

fn connections_max(descriptors: u64) -> u32 {
    let [least, most] = CONNECTIONS;
    let count = (descriptors / DESCRIPTORS_PART).clamp(least, most);
    u32::try_from(count).expect("it is within the bounds")
}

async fn accept(entrance: Entrance, allow_actions: bool, app: Router, room: Arc<Semaphore>) {
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let accepted = match &entrance {
            Entrance::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                let access = if allow_actions { Access::Full } else { Access::ReadOnly };
                let local = stream.local_addr().ok().map(|address| address.ip());
                tokio::spawn(answer(stream, access, local, app.clone(), permit));
            }),
            Entrance::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                let peer = stream.peer_cred().map(|peer| peer.uid());
                let known = peer.is_ok_and(|user| user == 0 || user == geteuid().as_raw());
                let access = if known { Access::Full } else { Access::Refused };
                tokio::spawn(answer(stream, access, None, app.clone(), permit));
            }),
        };
        if accepted.is_err() {
            sleep(REST).await;
        }
    }
}

/// Serves one connection, over TCP to this address.
async fn answer<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: T,
    access: Access,
    local: Option<IpAddr>,
    app: Router,
    _permit: OwnedSemaphorePermit,
) {
    let answered = Arc::new(Notify::new());
    let has_answered = Arc::clone(&answered);
    let app = TowerToHyperService::new(app);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(access);
        let rebound = local.is_some_and(|local| is_rebound(local, host(&request)));
        let (app, has_answered) = (app.clone(), Arc::clone(&has_answered));
        Box::pin(async move {
            let response = match access {
                Access::Refused => Ok(routes::stranger()),
                _ if rebound => Ok(routes::rebound()),
                _ => app.call(request.map(Body::new)).await,
            };
            if let Ok(response) = &response
                && response.extensions().get::<Following>().is_none()
            {
                has_answered.notify_one();
            }
            response
        })
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(HEAD_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let unread = async {
        answered.notified().await;
        sleep(ANSWER_LIMIT).await;
    };
    let result = tokio::select! {
        result = poll_fn(|context| connection.poll_without_shutdown(context)) => result,
        () = unread => return,
    };
    let mut stream = connection.into_parts().io.into_inner();
    if result.is_err_and(|error| error.is_timeout()) {
        // A client that does not read is not waited for.
        let _ = timeout(HEAD_LIMIT, stream.write_all(too_slow().as_bytes())).await;
    }
    let _ = timeout(HEAD_LIMIT, stream.shutdown()).await;
}

/// The host that a request is for. A probe is answered by whatever name: it tells nothing.
fn host(request: &Request<Incoming>) -> Option<&str> {
    let is_probe = matches!(request.uri().path(), "/livez" | "/readyz");
    let field = request.headers().get(header::HOST).filter(|_| !is_probe)?;
    field.to_str().ok()
}

/// The answer to an incomplete request.
fn too_slow() -> String {
    let refused = RefusedView {
        error: "the request's head was not complete in time".into(),
        remedy: format!("send all of it within {} s", HEAD_LIMIT.as_secs()),
        ..RefusedView::default()
    };
    let body = serde_json::to_string(&refused).expect("plain data");
    format!(
        "HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}\n",
        body.len() + 1
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_a_part_of_the_descriptors() {
        for (descriptors, connections) in [(0, 128), (1024, 128), (8192, 512), (u64::MAX, 1024)] {
            assert_eq!(connections_max(descriptors), connections);
        }
    }
}

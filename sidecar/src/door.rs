//! The doors: how many may be in at once, and how long they may keep others waiting.
//!
//! A request is worked on once it is there as a whole. Who has no such request under way holds a place for
//! nothing: when places run out, whoever did so longest makes room. So neither idle nor slow connections keep
//! anybody out, and those that filters keep alive stay as long as there is room.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    http::{Request, Response, StatusCode, Version},
    response::IntoResponse,
    serve::Listener,
};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{body::Incoming, service::Service};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// A claim is under 200 bytes.
pub(crate) const LARGEST_BODY: usize = 4 << 10;
/// How much of a head is read.
const LARGEST_HEAD: usize = 32 << 10;
/// How long a request may take to arrive, and its body.
const ARRIVES: Duration = Duration::from_secs(10);
const BODY_ARRIVES: Duration = Duration::from_secs(5);
/// How long a connection may be idle. Envoy gives up after an hour: it must be first, else it may just be sending
/// something.
const IDLE: Duration = Duration::from_secs(3_900);
/// How long an answer has to leave before its connection makes room.
const LEAVES: Duration = Duration::from_millis(100);
/// How long whoever comes waits for room.
const MAKES_ROOM: Duration = Duration::from_secs(1);
/// How long those who ask for nothing are waited for at the end.
const ENDS: Duration = Duration::from_secs(1);

/// Why a connection was not kept.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, EncodeLabelValue)]
enum Why {
    /// Nobody made room in time.
    Refused,
    /// Its request did not arrive in time.
    Slow,
    /// Nothing was asked for long.
    Idle,
    /// Another needed its place.
    Room,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Closed {
    why: Why,
}

/// What is counted at the doors.
#[derive(Clone, Default)]
pub(crate) struct DoorMetrics {
    open: Gauge,
    closed: Family<Closed, Counter>,
}

impl DoorMetrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("connections", "Connections of filters and operators", metrics.open.clone());
        registry.register(
            "connections_closed",
            "Connections that were not kept, and why",
            metrics.closed.clone(),
        );
        metrics
    }
}

/// The places of all doors.
pub(crate) struct Places {
    free: Arc<Semaphore>,
    /// Tells one who asks for nothing, the one that did longest, to go.
    room: Notify,
    metrics: DoorMetrics,
}

/// A place, as long as it is kept.
struct Place {
    _permit: OwnedSemaphorePermit,
    open: Gauge,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.dec();
    }
}

impl Places {
    pub(crate) fn new(most: usize, metrics: DoorMetrics) -> Arc<Self> {
        Arc::new(Self { free: Arc::new(Semaphore::new(most)), room: Notify::new(), metrics })
    }

    /// A place for who just came; none if nobody makes room.
    async fn take(&self) -> Option<Place> {
        let permit = match Arc::clone(&self.free).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                self.room.notify_one();
                match timeout(MAKES_ROOM, Arc::clone(&self.free).acquire_owned()).await {
                    Ok(Ok(permit)) => permit,
                    Ok(Err(_)) | Err(_) => {
                        self.closed(Why::Refused);
                        return None;
                    }
                }
            }
        };
        self.metrics.open.inc();
        Some(Place { _permit: permit, open: self.metrics.open.clone() })
    }

    fn closed(&self, why: Why) {
        self.metrics.closed.get_or_create(&Closed { why }).inc();
    }

    /// Waits until a connection that asks for nothing is to go.
    async fn goes(&self, patience: Duration, why: Why) -> Why {
        let room = async {
            sleep(LEAVES).await;
            self.room.notified().await;
        };
        tokio::select! {
            () = room => Why::Room,
            () = sleep(patience) => why,
        }
    }
}

/// What a connection does.
#[derive(Clone, Copy)]
struct Doing {
    /// Requests that are there as a whole and not answered yet.
    working: usize,
    /// Something was heard that is no whole request yet.
    arriving: bool,
    /// Whether what is heard begins a request: HTTP/2 says other things, too.
    multiplexed: bool,
}

/// A request that is worked on.
struct Working(watch::Sender<Doing>);

impl Working {
    fn begin(doing: &watch::Sender<Doing>) -> Self {
        doing.send_modify(|doing| (doing.working, doing.arriving) = (doing.working + 1, false));
        Self(doing.clone())
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.send_modify(|doing| doing.working -= 1);
    }
}

/// Lets in who comes to a listener and answers them, until the end; then finishes what is under way.
pub(crate) async fn serve<L: Listener>(
    mut listener: L,
    router: Router,
    places: Arc<Places>,
    shutdown: CancellationToken,
) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            () = shutdown.cancelled() => break,
        };
        if let Some(place) = places.take().await {
            let (router, places, shutdown) = (router.clone(), Arc::clone(&places), shutdown.clone());
            connections.spawn(async move {
                keep(stream, router, &places, &shutdown).await;
                drop(place);
            });
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Answers one connection for as long as it is kept.
async fn keep<S>(stream: S, router: Router, places: &Places, shutdown: &CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let doing = watch::Sender::new(Doing { working: 0, arriving: true, multiplexed: false });
    let mut changes = doing.subscribe();
    let router = TowerToHyperService::new(router);
    let service = {
        let doing = doing.clone();
        hyper::service::service_fn(move |request| answer(request, router.clone(), doing.clone()))
    };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().max_buf_size(LARGEST_HEAD);
    let connection = builder.serve_connection(TokioIo::new(Heard { stream, doing }), service);
    tokio::pin!(connection);
    let mut ending = false;
    loop {
        let now = *changes.borrow_and_update();
        let (patience, why) = match now {
            _ if ending => (ENDS, Why::Idle),
            Doing { arriving: true, .. } => (ARRIVES, Why::Slow),
            _ => (IDLE, Why::Idle),
        };
        tokio::select! {
            // Whether it ends well or not is its own business.
            _ = connection.as_mut() => return,
            _ = changes.changed() => {}
            () = shutdown.cancelled(), if !ending => {
                connection.as_mut().graceful_shutdown();
                ending = true;
            }
            why = places.goes(patience, why), if now.working == 0 => {
                places.closed(why);
                return;
            }
        }
    }
}

/// Answers a request once it is there as a whole.
async fn answer(
    request: Request<Incoming>,
    router: TowerToHyperService<Router>,
    doing: watch::Sender<Doing>,
) -> Result<Response<Body>, Infallible> {
    if request.version() == Version::HTTP_2 {
        doing.send_modify(|doing| (doing.multiplexed, doing.arriving) = (true, false));
    }
    let (head, body) = request.into_parts();
    let body = match timeout(BODY_ARRIVES, Limited::new(body, LARGEST_BODY).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let problem = format!("the body is longer than {LARGEST_BODY} bytes\n");
            return Ok((StatusCode::PAYLOAD_TOO_LARGE, problem).into_response());
        }
        Ok(Err(error)) => {
            return Ok(
                (StatusCode::BAD_REQUEST, format!("the body cannot be read: {error}\n")).into_response()
            );
        }
        Err(_) => return Ok((StatusCode::REQUEST_TIMEOUT, "the body does not come\n").into_response()),
    };
    let working = Working::begin(&doing);
    let answer = router.call(Request::from_parts(head, Full::<Bytes>::new(body))).await;
    drop(working);
    answer
}

/// A stream that says when something came.
struct Heard<S> {
    stream: S,
    doing: watch::Sender<Doing>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let poll = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.doing.send_if_modified(|doing| {
                let is_news = !doing.arriving && !doing.multiplexed;
                doing.arriving |= is_news;
                is_news
            });
        }
        poll
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }
}

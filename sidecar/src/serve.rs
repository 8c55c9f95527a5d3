//! `mooring serve`: puts the parts together and ends them in order.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use affinity::NodeId;
use tokio::{
    net::{TcpListener, UnixListener},
    signal::unix::{SignalKind, signal},
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;

use crate::{
    api::{self, Shared},
    cli::{Listen, ReplicateSpec, Serve, SessionsSpec, StoreUrl},
    descriptors::Bounds,
    directory::Directory,
    door::{self, Places},
    files::{self, Root},
    foreign, heartbeat,
    lists::Told,
    metrics::Metrics,
    node_spec::NodeSpec,
    orm_cache::{self, OrmCache},
    probe,
    registry::{Registry, Thresholds},
    replicate, secret_file,
    sessions::{self, Carriers, Sealer},
    store::{Embedded, InvalidUrl, OpenError, Redis, Store, Values},
    token::Tokens,
};

/// How long open requests may take to end.
const GRACE: Duration = Duration::from_secs(5);

/// Why the sidecar cannot serve. Each names the option to change.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error("--node: {0}")]
    Nodes(#[from] affinity::membership::InvalidMembership),
    #[error("--state-dir {0}: {1}")]
    State(PathBuf, OpenError),
    #[error("--store: {0}")]
    Store(InvalidUrl),
    #[error(
        "--node: missing: name the Odoo servers, or the one beside this sidecar with --node-id, or a --store \
         in which others register theirs"
    )]
    NoNodes,
    #[error("--sessions {0}: there is no --node or --node-id of this name")]
    UnknownNode(NodeId),
    #[error("--sessions {0}: it is named twice")]
    SameNode(NodeId),
    #[error(
        "--sessions: {0} and {1} have the same directory: nodes that share one need no --sessions, and others \
         need a data_dir each"
    )]
    SharedDirectory(NodeId, NodeId),
    #[error("--sessions {0}={1}: {2}")]
    Sessions(NodeId, PathBuf, io::Error),
    #[error("--replicate {0}: it is named twice")]
    ReplicatedTwice(PathBuf),
    #[error("--replicate {0}: {1}")]
    Replicate(PathBuf, io::Error),
    #[error(
        "--secret-file: missing: sessions, files and cached values in Redis are sealed with a secret that all \
         sidecars share; make one with openssl rand -hex 32"
    )]
    NoSecret,
    #[error("MOORING_SECRET: {0}")]
    GivenSecret(String),
    #[error("{0}: {1}")]
    Way(String, io::Error),
    #[error("--secret-file {0}: {1}")]
    Secret(PathBuf, io::Error),
    #[error("--token-file {0}: {1}")]
    Token(PathBuf, io::Error),
    #[error(
        "--listen {0}: without --token-file claims are taken from this host only, so it must be a loopback \
         address or unix:PATH"
    )]
    NotLoopback(Listen),
    #[error("--cache-socket {0}: {1}")]
    CacheSocket(PathBuf, io::Error),
    #[error("--listen {0}: {1}")]
    Listen(Listen, io::Error),
    #[error("signals cannot be received: {0}")]
    Signals(io::Error),
    #[error("serving failed: {0}")]
    Serving(JoinError),
}

/// Serves until a signal ends it.
///
/// # Errors
/// If the options contradict each other or the machine, or an address cannot be listened on.
pub(crate) async fn run(options: Serve) -> Result<(), ServeError> {
    let failed = |path: &PathBuf, error| ServeError::Token(path.clone(), error);
    let tokens = options.token_file.as_ref();
    let tokens = tokens.map(|path| Tokens::read(path).map_err(|error| failed(path, error))).transpose()?;
    let tokens = tokens.map(Arc::new);
    for listen in &options.listen {
        let is_beyond = matches!(listen, Listen::Tcp(address) if !address.ip().is_loopback());
        if is_beyond && tokens.is_none() {
            return Err(ServeError::NotLoopback(listen.clone()));
        }
    }
    if tokens.is_none() {
        tracing::info!("no --token-file: claims are taken from loopback and Unix sockets only");
    }
    let bounds = Bounds::raise(options.most_requests);
    let mut terminated = signal(SignalKind::terminate()).map_err(ServeError::Signals)?;
    let mut interrupted = signal(SignalKind::interrupt()).map_err(ServeError::Signals)?;

    let probe = &options.probe;
    let thresholds = Thresholds { down_after: probe.down_after, up_after: probe.up_after };
    let beside = options.beside();
    let specs: Vec<_> = options.nodes.iter().cloned().chain(beside.clone()).collect();
    if specs.is_empty() && options.store == StoreUrl::Embedded {
        return Err(ServeError::NoNodes);
    }
    check_ways(&options)?;
    let carried = carried(&options, &specs)?;
    check_replicated(&options.replicate)?;
    let carrying = carried.iter().map(|(node, _)| node.clone()).collect();
    let registry = Arc::new(Registry::new(specs, carrying, thresholds, options.bounded_load)?);
    let store = open_store(&options)?;
    let metrics = Arc::new(Metrics::new());
    let cached = usize::try_from(options.cache_sessions).unwrap_or(usize::MAX);
    let directory = Arc::new(Directory::new(store, options.lifetimes(), cached, Arc::clone(&metrics)));
    let sealer = options.seals().then(|| sealer(&options)).transpose()?.map(Arc::new);
    let orm_cache = orm_cache(&options, sealer.as_ref(), &metrics)?;
    let carriers = match sessions_plan(&options, &carried, sealer.as_ref()) {
        Some(plan) => Carriers::start(plan, &directory, &registry, &metrics),
        None => Carriers::default(),
    };
    if let Some(sealer) = &sealer {
        replicate::start(&options.replicate, sealer, &directory.shared_store(), &metrics);
    }
    follow_secrets(&options, tokens.as_ref(), sealer.as_ref());
    let shutdown = CancellationToken::new();
    let shared = Arc::new(Shared {
        directory: Arc::clone(&directory),
        registry: Arc::clone(&registry),
        metrics: Arc::clone(&metrics),
        carriers,
        orm_cache: orm_cache.clone(),
        tokens: tokens.clone(),
        most_requests: bounds.requests,
        shutdown: shutdown.clone(),
    });

    let mut servers = JoinSet::new();
    let places = Places::new(bounds.connections, metrics.doors.clone());
    for listen in &options.listen {
        let router = api::router(Arc::clone(&shared));
        let guarded = |own| foreign::kept_out(router, own, &metrics.requests_foreign);
        let (places, stop) = (Arc::clone(&places), shutdown.clone());
        let failed = |error| ServeError::Listen(listen.clone(), error);
        match listen {
            Listen::Tcp(address) => {
                let listener = TcpListener::bind(address).await.map_err(failed)?;
                let address = listener.local_addr().map_err(failed)?;
                tracing::info!("listening on http://{address}");
                let own = Some(address).filter(|_| tokens.is_none());
                servers.spawn(door::serve(listener, guarded(own), places, stop));
            }
            Listen::Unix(path) => {
                let listener = bind_unix(path).map_err(failed)?;
                tracing::info!("listening on {listen}");
                // No web page gets at a socket by another name.
                servers.spawn(door::serve(listener, guarded(None), places, stop));
            }
        }
    }
    if let Some((cache, path)) = orm_cache.zip(options.orm_cache.cache_socket.as_ref()) {
        let listener = bind_unix(path).map_err(|error| ServeError::CacheSocket(path.clone(), error))?;
        tracing::info!("the ORM cache listens on {}", path.display());
        tokio::spawn(Arc::clone(&cache).follow());
        tokio::spawn(orm_cache::serve(listener, cache, bounds.cache_connections));
    }
    let told = Told::of(&options.listen.first().map(ToString::to_string).unwrap_or_default());
    let beside = beside.map(|spec| spec.id);
    registry.introduce(told, beside.clone());
    heartbeat::start(&directory, &registry, &shared.carriers, beside);
    tokio::spawn(async move { directory.follow().await });
    probe::start(&registry, probe, &carried, &metrics);

    tokio::select! {
        _ = terminated.recv() => {}
        _ = interrupted.recv() => {}
        // A server ends by itself only when something is broken.
        Some(Err(error)) = servers.join_next() => return Err(ServeError::Serving(error)),
    }
    tracing::info!("ending: not ready any more, finishing open requests");
    shutdown.cancel();
    let drained = tokio::time::timeout(GRACE, async { while servers.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        tracing::warn!("some requests did not end within {} s", GRACE.as_secs());
    }
    let sockets = options.listen.iter().filter_map(|listen| match listen {
        Listen::Unix(path) => Some(path),
        Listen::Tcp(_) => None,
    });
    for path in sockets.chain(&options.orm_cache.cache_socket) {
        // Whoever starts next removes what is left.
        let _ = fs::remove_file(path);
    }
    Ok(())
}

/// Checks that nobody can lead this process elsewhere from where it makes files of its own.
fn check_ways(options: &Serve) -> Result<(), ServeError> {
    let state = Some(("--state-dir", &*options.state_dir)).filter(|_| options.store == StoreUrl::Embedded);
    let listen = options.listen.iter().filter_map(|listen| match listen {
        Listen::Unix(path) => Some(("--listen", path.parent()?)),
        Listen::Tcp(_) => None,
    });
    let cache = options.orm_cache.cache_socket.as_deref().and_then(Path::parent);
    for (option, folder) in state.into_iter().chain(listen).chain(cache.map(|path| ("--cache-socket", path)))
    {
        files::check_way(folder)
            .map_err(|error| ServeError::Way(format!("{option} {}", folder.display()), error))?;
    }
    Ok(())
}

/// The nodes whose sessions are carried here, and where; checks that they can be.
fn carried(options: &Serve, specs: &[NodeSpec]) -> Result<Vec<(NodeId, Root)>, ServeError> {
    let mut carried: Vec<(NodeId, Root)> = Vec::new();
    for SessionsSpec { node, path } in &options.sessions {
        if !specs.iter().any(|spec| spec.id == *node) {
            return Err(ServeError::UnknownNode(node.clone()));
        }
        if carried.iter().any(|(other, _)| other == node) {
            return Err(ServeError::SameNode(node.clone()));
        }
        let root = Root::new(path.clone());
        checked(&root).map_err(|error| ServeError::Sessions(node.clone(), path.clone(), error))?;
        if let Some((other, _)) = carried.iter().find(|(_, other)| other.path() == root.path()) {
            return Err(ServeError::SharedDirectory(other.clone(), node.clone()));
        }
        carried.push((node.clone(), root));
    }
    Ok(carried)
}

/// Checks that the directories that are to be replicated can be, and are none twice.
fn check_replicated(specs: &[ReplicateSpec]) -> Result<(), ServeError> {
    let mut known = BTreeSet::new();
    for ReplicateSpec { path, .. } in specs {
        let root = Root::new(path.clone());
        checked(&root).map_err(|error| ServeError::Replicate(path.clone(), error))?;
        if !known.insert(root.path().to_owned()) {
            return Err(ServeError::ReplicatedTwice(path.clone()));
        }
    }
    Ok(())
}

/// Whether a directory can be carried. One that is yet to be made is waited for.
fn checked(root: &Root) -> io::Result<()> {
    sessions::check(root).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })
}

/// What is to be carried, if anything.
fn sessions_plan(
    options: &Serve,
    carried: &[(NodeId, Root)],
    sealer: Option<&Arc<Sealer>>,
) -> Option<sessions::Plan> {
    if carried.is_empty() {
        return None;
    }
    let (sealer, directories) = (Arc::clone(sealer?), carried.to_vec());
    let lifetime = options.lifetimes().durable;
    Some(sessions::Plan { directories, sealer, rate: options.carry_rate, lifetime })
}

/// The ORM cache, if it is wanted. It is shared where there is a Redis.
fn orm_cache(
    options: &Serve,
    sealer: Option<&Arc<Sealer>>,
    metrics: &Metrics,
) -> Result<Option<Arc<OrmCache>>, ServeError> {
    let cache = &options.orm_cache;
    if cache.cache_socket.is_none() {
        return Ok(None);
    }
    let shared = match (&options.store, sealer) {
        (StoreUrl::Redis(url), Some(sealer)) => {
            let values = Values::open(url, &options.access(), &options.redis_prefix);
            let values = values.map_err(ServeError::Store)?;
            Some(orm_cache::Shared::new(values, Arc::clone(sealer), cache.lifetime()))
        }
        _ => None,
    };
    Ok(OrmCache::new(cache.bytes(), shared, metrics.orm_cache.clone()))
}

/// Takes token and secret anew when their files change, for as long as the process lives.
fn follow_secrets(options: &Serve, tokens: Option<&Arc<Tokens>>, sealer: Option<&Arc<Sealer>>) {
    if let Some((path, tokens)) = options.token_file.clone().zip(tokens.cloned()) {
        tokio::spawn(secret_file::follow(path, "--token-file", move |text| tokens.renew(text)));
    }
    if let Some((path, sealer)) = options.secret_file.clone().zip(sealer.cloned()) {
        tokio::spawn(secret_file::follow(path, "--secret-file", move |text| sealer.renew(text)));
    }
}

/// The secrets that seal what goes through the store.
fn sealer(options: &Serve) -> Result<Sealer, ServeError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| ServeError::Secret(path, error)
    };
    // Never an option of the command line, which everybody on the host can read.
    let given = std::env::var("MOORING_SECRET").ok().filter(|secret| !secret.is_empty());
    match (&options.secret_file, &options.store) {
        (Some(path), _) => Sealer::read(path).map_err(failed(path)),
        (None, _) if given.is_some() => {
            Sealer::new(&given.unwrap_or_default()).map_err(ServeError::GivenSecret)
        }
        (None, StoreUrl::Embedded) => {
            let path = options.state_dir.join("secret");
            Sealer::read_or_make(&path).map_err(failed(&path))
        }
        (None, StoreUrl::Redis(_)) => Err(ServeError::NoSecret),
    }
}

fn open_store(options: &Serve) -> Result<Arc<dyn Store>, ServeError> {
    let lifetimes = options.lifetimes();
    Ok(match &options.store {
        StoreUrl::Embedded => {
            let folder = &options.state_dir;
            let store = Embedded::open(folder, lifetimes)
                .map_err(|error| ServeError::State(folder.clone(), error))?;
            Arc::new(store)
        }
        StoreUrl::Redis(url) => {
            let redis = Redis::open(url, &options.access(), &options.redis_prefix, lifetimes);
            Arc::new(redis.map_err(ServeError::Store)?)
        }
    })
}

/// Listens on a socket that its group may use, in the place of one that nobody listens on any more.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    if fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket()) {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens on it"));
        }
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

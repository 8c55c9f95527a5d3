//! The connection to Redis: made when it is needed, given up when it is broken, and not tried again
//! at once.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, Pipeline, RedisError, RedisFuture, RedisResult, ServerErrorKind,
    Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cluster::ClusterConfig,
    cluster_async::ClusterConnection,
    cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo},
};

use super::address::Address;

/// How long a connection, and an answer, may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// How long a Redis that failed is left alone: at first, and at most. Half of it is random.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A connection that may be shared.
#[derive(Clone)]
pub(super) enum Connection {
    Server(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Server(connection) => connection.req_packed_command(command),
            Self::Cluster(connection) => connection.req_packed_command(command),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Server(connection) => connection.req_packed_commands(pipeline, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Server(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}

/// How it stands with the shared connection.
struct State {
    connection: Option<Connection>,
    /// Grows with each connection, so that an old one's failure does not end a new one.
    number: u64,
    failures: u32,
    paused_until: Option<Instant>,
}

/// The way to Redis.
pub(super) struct Link {
    address: Address,
    state: Mutex<State>,
    /// One at a time connects; the others wait for it.
    connecting: tokio::sync::Mutex<()>,
}

impl Link {
    pub(super) fn new(address: Address) -> Self {
        let state = State { connection: None, number: 0, failures: 0, paused_until: None };
        Self { address, state: Mutex::new(state), connecting: tokio::sync::Mutex::default() }
    }

    /// Whether everything is in one place, so that one script may use all keys.
    pub(super) fn is_one_server(&self) -> bool {
        !matches!(self.address, Address::Cluster(_))
    }

    /// Does something over the shared connection.
    ///
    /// # Errors
    /// As Redis answers; at once, where it failed a moment ago.
    pub(super) async fn run<T>(
        &self,
        work: impl AsyncFnOnce(&mut Connection) -> RedisResult<T>,
    ) -> RedisResult<T> {
        let (mut connection, number) = self.connection().await?;
        let result = work(&mut connection).await;
        match &result {
            // A cluster's connection mends itself, and one server's failure is not the others'.
            Err(error) if self.is_one_server() && is_broken(error) => self.failed(number),
            _ => self.works(),
        }
        result
    }

    async fn connection(&self) -> RedisResult<(Connection, u64)> {
        if let Some(present) = self.present()? {
            return Ok(present);
        }
        let _turn = self.connecting.lock().await;
        if let Some(present) = self.present()? {
            return Ok(present);
        }
        match self.connect(PATIENCE).await {
            Ok(connection) => {
                let mut state = self.state();
                state.number += 1;
                state.connection = Some(connection.clone());
                Ok((connection, state.number))
            }
            Err(error) => {
                let number = self.state().number;
                self.failed(number);
                Err(error)
            }
        }
    }

    /// The connection, if there is one; an error while Redis is left alone.
    fn present(&self) -> RedisResult<Option<(Connection, u64)>> {
        let state = self.state();
        if state.paused_until.is_some_and(|until| Instant::now() < until) {
            return Err((ErrorKind::Io, "it failed a moment ago").into());
        }
        Ok(state.connection.clone().map(|connection| (connection, state.number)))
    }

    fn failed(&self, number: u64) {
        let mut state = self.state();
        // Many may fail together; that is one failure.
        if state.number == number && state.paused_until.is_none_or(|until| until <= Instant::now()) {
            let pause = SHORTEST_PAUSE.saturating_mul(1 << state.failures.min(8)).min(LONGEST_PAUSE);
            state.paused_until = Some(Instant::now() + pause.mul_f64(rand::random_range(0.5..=1.0)));
            state.failures = state.failures.saturating_add(1);
            state.connection = None;
        }
    }

    fn works(&self) {
        self.state().failures = 0;
    }

    /// A connection of the caller's own, over which an answer may take as long as `patience`.
    pub(super) async fn connect(&self, patience: Duration) -> RedisResult<Connection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(PATIENCE))
            .set_response_timeout(Some(patience));
        let connect = async {
            Ok(match &self.address {
                Address::Single(client) => {
                    Connection::Server(client.get_multiplexed_async_connection_with_config(&config).await?)
                }
                Address::Sentinel(client) => {
                    let mut client = client.lock().await;
                    Connection::Server(client.get_async_connection_with_config(&config).await?)
                }
                Address::Cluster(client) => {
                    let config =
                        ClusterConfig::new().set_connection_timeout(PATIENCE).set_response_timeout(patience);
                    Connection::Cluster(client.get_async_connection_with_config(config).await?)
                }
            })
        };
        // Several Sentinels or nodes may each use up their time.
        let all = tokio::time::timeout(PATIENCE * 3, connect).await;
        all.unwrap_or_else(|_| Err((ErrorKind::Io, "nobody lets it connect in time").into()))
    }

    /// Names the processes that hold the data: whoever restarts or fails over becomes another.
    pub(super) async fn identity(&self, connection: &mut Connection) -> RedisResult<Vec<String>> {
        let mut info = redis::cmd("INFO");
        info.arg("server");
        let texts: Vec<String> = match connection {
            Connection::Server(server) => vec![info.query_async(server).await?],
            Connection::Cluster(cluster) => {
                let all = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
                let by_node: std::collections::HashMap<String, String> =
                    redis::from_redis_value(cluster.route_command(info, all).await?)?;
                by_node.into_values().collect()
            }
        };
        let id = |text: &String| {
            text.lines().find_map(|line| line.strip_prefix("run_id:")).unwrap_or_default().to_owned()
        };
        let mut ids: Vec<String> = texts.iter().map(id).collect();
        ids.sort();
        Ok(ids)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether an error says that this connection, or the server behind it, will not do.
fn is_broken(error: &RedisError) -> bool {
    error.is_io_error()
        || error.is_timeout()
        || error.is_connection_dropped()
        || matches!(
            error.kind(),
            ErrorKind::ClusterConnectionNotFound
                | ErrorKind::MasterNameNotFoundBySentinel
                | ErrorKind::Server(
                    ServerErrorKind::ReadOnly
                        | ServerErrorKind::MasterDown
                        | ServerErrorKind::BusyLoading
                        | ServerErrorKind::ClusterDown
                )
        )
}

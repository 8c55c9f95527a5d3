//! The connection to Redis: made when it is needed, given up when it is broken, and not tried again
//! at once. Password and certificates are read each time, and when their files change.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
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

use super::{
    address::{Access, Address, InvalidUrl, Secrets},
    pause::Pause,
};
use crate::lasting::Lasting;

/// How long a connection, and an answer, may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// How often is looked whether the password or the certificates were renewed.
const LOOK: Duration = Duration::from_secs(2);

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
#[derive(Default)]
struct State {
    connection: Option<Connection>,
    /// Grows with each connection, so that an old one's failure does not end a new one.
    number: u64,
    pause: Pause,
    /// Why it failed last.
    problem: String,
    /// What the connection was made with.
    secrets: Secrets,
    /// When was last looked whether they are still these.
    looked: Option<Instant>,
}

/// The way to Redis.
pub(super) struct Link {
    url: String,
    access: Access,
    is_cluster: bool,
    state: Mutex<State>,
    /// One at a time connects; the others wait for it.
    connecting: tokio::sync::Mutex<()>,
    renewal: Lasting,
}

impl Link {
    /// A way to where the URL leads.
    ///
    /// # Errors
    /// If it is none, or a file beside it cannot be used.
    pub(super) fn new(url: &str, access: &Access) -> Result<Arc<Self>, InvalidUrl> {
        let address = Address::new(url, access, &Secrets::read(access)?)?;
        Ok(Arc::new(Self {
            url: url.to_owned(),
            access: access.clone(),
            is_cluster: matches!(address, Address::Cluster(_)),
            state: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
            renewal: Lasting::new("the renewed password or certificates for Redis"),
        }))
    }

    /// Whether everything is in one place, so that one script may use all keys.
    pub(super) fn is_one_server(&self) -> bool {
        !self.is_cluster
    }

    /// Does something over the shared connection.
    ///
    /// # Errors
    /// As Redis answers; at once, where it failed a moment ago.
    pub(super) async fn run<T>(
        self: &Arc<Self>,
        work: impl AsyncFnOnce(&mut Connection) -> RedisResult<T>,
    ) -> RedisResult<T> {
        let (mut connection, number) = self.connection().await?;
        self.look_at_files();
        let result = work(&mut connection).await;
        match &result {
            // A cluster's connection mends itself, and one server's failure is not the others'.
            Err(error) if (self.is_one_server() && is_broken(error)) || is_locked_out(error) => {
                self.failed(number, error);
            }
            _ => self.state().pause.works(Instant::now()),
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
        match self.connect_now(PATIENCE).await {
            Ok((connection, secrets)) => Ok((connection.clone(), self.connected(connection, secrets))),
            Err(error) => {
                let number = self.state().number;
                self.failed(number, &error);
                Err(error)
            }
        }
    }

    /// The connection, if there is one; while Redis is left alone, why it is.
    fn present(&self) -> RedisResult<Option<(Connection, u64)>> {
        let state = self.state();
        if state.pause.is_on(Instant::now()) {
            return Err(io::Error::other(state.problem.clone()).into());
        }
        Ok(state.connection.clone().map(|connection| (connection, state.number)))
    }

    fn connected(&self, connection: Connection, secrets: Secrets) -> u64 {
        let mut state = self.state();
        state.number += 1;
        (state.connection, state.secrets, state.looked) = (Some(connection), secrets, Some(Instant::now()));
        state.number
    }

    fn failed(&self, number: u64, error: &RedisError) {
        let (mut state, now) = (self.state(), Instant::now());
        // Many may fail together; that is one failure.
        if state.number == number && !state.pause.is_on(now) {
            state.pause.failed(now);
            state.problem = said(error);
            state.connection = None;
        }
    }

    /// Looks now and then whether the connection was made with what the files hold.
    fn look_at_files(self: &Arc<Self>) {
        let mut state = self.state();
        let is_due = state.looked.is_none_or(|looked| looked.elapsed() > LOOK);
        if is_due && self.access.has_files() {
            state.looked = Some(Instant::now());
            let link = Arc::clone(self);
            tokio::spawn(async move { link.renew().await });
        }
    }

    /// Connects with what the files hold by now. As long as that fails, the old connection is as good as ever:
    /// Redis may be told of a new password later than the sidecar.
    async fn renew(&self) {
        let secrets = match Secrets::read(&self.access) {
            Ok(secrets) => secrets,
            Err(error) => return self.renewal.failed(error),
        };
        if self.state().secrets != secrets {
            let _turn = self.connecting.lock().await;
            match self.connect_now(PATIENCE).await {
                Ok((connection, secrets)) => {
                    self.connected(connection, secrets);
                    tracing::info!("Redis: connected anew with the renewed password or certificates");
                }
                Err(error) => return self.renewal.failed(said(&error)),
            }
        }
        self.renewal.works();
    }

    /// A connection of the caller's own, over which an answer may take as long as `patience`; none while Redis
    /// is left alone.
    pub(super) async fn connect(&self, patience: Duration) -> RedisResult<Connection> {
        self.present()?;
        self.connect_now(patience).await.map(|(connection, _)| connection)
    }

    async fn connect_now(&self, patience: Duration) -> RedisResult<(Connection, Secrets)> {
        let unusable = |error: InvalidUrl| RedisError::from(io::Error::other(error.to_string()));
        let secrets = Secrets::read(&self.access).map_err(unusable)?;
        let address = Address::new(&self.url, &self.access, &secrets).map_err(unusable)?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(PATIENCE))
            .set_response_timeout(Some(patience));
        let connect = async {
            RedisResult::Ok(match address {
                Address::Single(client) => {
                    Connection::Server(client.get_multiplexed_async_connection_with_config(&config).await?)
                }
                Address::Sentinel(mut client) => {
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
        let late = |_| Err(io::Error::new(io::ErrorKind::TimedOut, "nobody lets it connect in time").into());
        let mut connection = all.unwrap_or_else(late)?;
        // Who was not let in hears of it in other words later, or finds the connection closed.
        let ping = redis::cmd("PING").query_async::<()>(&mut connection).await;
        match ping.err().filter(is_locked_out) {
            None => Ok((connection, secrets)),
            Some(error) => Err(error),
        }
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

/// An error's text, without the arguments that Redis repeats of a command it does not know: a password may be one.
pub(super) fn said(error: &RedisError) -> String {
    let text = error.to_string();
    text.split(", with args beginning with").next().unwrap_or_default().to_owned()
}

/// Whether Redis does not take the password any more that the connection was made with.
fn is_locked_out(error: &RedisError) -> bool {
    error.kind() == ErrorKind::AuthenticationFailed || matches!(error.code(), Some("NOAUTH" | "WRONGPASS"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_redis_repeats_is_not_told() {
        let parsed = redis::parse_redis_value(
            b"-ERR unknown command 'AUTH', with args beginning with: 'sidecar' 's3cret'\r\n",
        );
        let error = parsed.and_then(Value::extract_error).unwrap_err();
        assert!(error.to_string().contains("s3cret"), "else there is nothing to leave out");
        assert!(said(&error).contains("unknown command 'AUTH'") && !said(&error).contains("s3cret"));
    }
}

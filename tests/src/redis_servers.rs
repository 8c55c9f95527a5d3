//! Redis as people run it: one server, one with a replica and a Sentinel, a cluster.

use std::{net::SocketAddr, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result};
use redis::FromRedisValue;
use tempfile::TempDir;

use crate::{
    host::Host,
    process::{Process, free_port, wait_until},
    tools,
};

/// A redis-server with a configuration of its own. Dropping it kills it.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    process: Process,
}

impl Server {
    /// Starts one on loopback that keeps nothing on disk. `config` is added to its configuration; PORT
    /// in it is replaced by a port, on which it listens without it too if it is not there.
    ///
    /// # Errors
    /// If there is no such program, or it ends.
    pub async fn start(folder: &Path, config: &str) -> Result<Self> {
        Self::start_at(([127, 0, 0, 1], free_port()?).into(), folder, config).await
    }

    /// Starts one at an address.
    ///
    /// # Errors
    /// As above.
    pub async fn start_at(address: SocketAddr, folder: &Path, config: &str) -> Result<Self> {
        let own = folder.join(address.port().to_string());
        std::fs::create_dir_all(&own)?;
        let listen = if config.contains("PORT") { "port 0" } else { "port PORT" };
        let text = format!("bind 127.0.0.1\nsave \"\"\nappendonly no\n{listen}\n{config}\n");
        let file = own.join("redis.conf");
        std::fs::write(&file, text.replace("PORT", &address.port().to_string()))?;
        let mut command = Command::new(tools::redis_server()?);
        command.arg(&file).arg("--dir").arg(&own);
        Self::run_command(address, command, &own).await
    }

    /// Starts a Sentinel with a configuration, which it will rewrite.
    async fn start_sentinel(folder: &Path, config: &str) -> Result<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let file = folder.join("sentinel.conf");
        std::fs::write(&file, config)?;
        let mut command = Command::new(tools::redis_server()?);
        command.arg(&file).args(["--sentinel", "--bind", "127.0.0.1", "--port"]);
        command.arg(address.port().to_string());
        Self::run_command(address, command, folder).await
    }

    async fn run_command(address: SocketAddr, command: Command, folder: &Path) -> Result<Self> {
        let mut process = Process::start("redis-server", command, &folder.join("redis.log"))?;
        let listens = async || tokio::net::TcpStream::connect(address).await.ok();
        process.wait(Duration::from_secs(10), listens).await?;
        Ok(Self { address, process })
    }

    /// Runs one command, such as `SET key value`.
    ///
    /// # Errors
    /// If it does not answer, or with something else.
    pub async fn run<T: FromRedisValue>(&self, command: &str) -> Result<T> {
        let client = redis::Client::open(format!("redis://{}", self.address))?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        let mut words = command.split(' ');
        let mut call = redis::cmd(words.next().unwrap_or_default());
        let answer = call.arg(words.collect::<Vec<_>>()).query_async(&mut connection).await;
        answer.with_context(|| command.to_owned())
    }

    /// Kills it.
    pub fn kill(self) {
        self.process.kill();
    }
}

/// A server, its replica, and a Sentinel that watches over them.
pub struct Watched {
    /// The server, until somebody takes it.
    pub master: Option<Server>,
    /// Its replica.
    pub replica: Server,
    sentinel: Server,
    _folder: TempDir,
}

impl Watched {
    /// Starts them, and waits until they know each other. The server is called `odoo`.
    ///
    /// # Errors
    /// If one does not start.
    pub async fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let master = Server::start(folder.path(), "").await?;
        let port = master.address.port();
        let replica = Server::start(folder.path(), &format!("replicaof 127.0.0.1 {port}")).await?;
        let config = format!(
            "sentinel monitor odoo 127.0.0.1 {port} 1\nsentinel down-after-milliseconds odoo 500\n\
             sentinel failover-timeout odoo 2000\n"
        );
        let sentinel = Server::start_sentinel(folder.path(), &config).await?;
        let knows = async || {
            let info = sentinel.run::<String>("INFO sentinel").await;
            info.is_ok_and(|info| info.contains("slaves=1"))
        };
        wait_until("the Sentinel knows the replica", knows).await?;
        let follows = async || {
            let info = replica.run::<String>("INFO replication").await;
            info.is_ok_and(|info| info.contains("master_link_status:up"))
        };
        wait_until("the replica follows", follows).await?;
        Ok(Self { master: Some(master), replica, sentinel, _folder: folder })
    }

    /// What a sidecar's `--store` is.
    pub fn url(&self) -> String {
        format!("redis+sentinel://{}/odoo", self.sentinel.address)
    }
}

/// Three servers that share all slots evenly, and perhaps replicas of them.
pub struct Cluster {
    /// The servers that were given slots, in the order of these.
    pub servers: Vec<Server>,
    /// A replica of each of the first.
    pub replicas: Vec<Server>,
    folder: TempDir,
}

/// How many slots there are, and servers.
const SLOTS: usize = 16_384;
const SERVERS: usize = 3;

impl Cluster {
    /// Starts one without replicas.
    ///
    /// # Errors
    /// If a server does not start.
    pub async fn start() -> Result<Self> {
        let mut cluster = Self { servers: Vec::new(), replicas: Vec::new(), folder: tempfile::tempdir()? };
        let mut buses = Vec::new();
        for place in 0..SERVERS {
            let (server, bus) = cluster.start_server().await?;
            let (first, last) = (place * SLOTS / SERVERS, (place + 1) * SLOTS / SERVERS - 1);
            server.run::<()>(&format!("CLUSTER ADDSLOTSRANGE {first} {last}")).await?;
            cluster.servers.push(server);
            buses.push(bus);
        }
        let [first, others @ ..] = cluster.servers.as_slice() else { return Ok(cluster) };
        for server in others {
            let meet = format!("CLUSTER MEET 127.0.0.1 {} {}", first.address.port(), buses[0]);
            server.run::<()>(&meet).await?;
        }
        cluster.wait_until_whole(SERVERS).await?;
        Ok(cluster)
    }

    /// Gives the server that holds a key a replica; its place among the servers.
    ///
    /// # Errors
    /// If that does not start.
    pub async fn replicate_holder(&mut self, key: &str) -> Result<usize> {
        let place = self.holder(key).await?;
        let id: String = self.servers[place].run("CLUSTER MYID").await?;
        let (replica, bus) = self.start_server().await?;
        let meet = format!("CLUSTER MEET 127.0.0.1 {} {bus}", replica.address.port());
        self.servers[place].run::<()>(&meet).await?;
        self.replicas.push(replica);
        self.wait_until_whole(SERVERS + self.replicas.len()).await?;
        let replica = self.replicas.last().context("no replica")?;
        replica.run::<()>(&format!("CLUSTER REPLICATE {id}")).await?;
        let follows = async || {
            let info = replica.run::<String>("INFO replication").await;
            info.is_ok_and(|info| info.contains("master_link_status:up"))
        };
        wait_until("the replica follows", follows).await?;
        Ok(place)
    }

    /// Hands a slot with all its keys to another server, as `redis-cli --cluster reshard` does. `during`
    /// is done when its keys are on their way.
    ///
    /// # Errors
    /// If a server refuses.
    pub async fn move_slot(
        &self,
        slot: u16,
        from: usize,
        to: usize,
        during: impl AsyncFnOnce(),
    ) -> Result<usize> {
        let (source, target) = (&self.servers[from], &self.servers[to]);
        let source_id: String = source.run("CLUSTER MYID").await?;
        let target_id: String = target.run("CLUSTER MYID").await?;
        target.run::<()>(&format!("CLUSTER SETSLOT {slot} IMPORTING {source_id}")).await?;
        source.run::<()>(&format!("CLUSTER SETSLOT {slot} MIGRATING {target_id}")).await?;
        let mut moved = 0;
        loop {
            let keys: Vec<String> = source.run(&format!("CLUSTER GETKEYSINSLOT {slot} 100")).await?;
            if keys.is_empty() {
                break;
            }
            for key in keys {
                let port = target.address.port();
                // It may have expired since.
                let _: String = source.run(&format!("MIGRATE 127.0.0.1 {port} {key} 0 2000")).await?;
                moved += 1;
            }
        }
        during().await;
        // First who gets it, then who had it.
        for server in [target, source].into_iter().chain(&self.servers) {
            server.run::<()>(&format!("CLUSTER SETSLOT {slot} NODE {target_id}")).await?;
        }
        Ok(moved)
    }

    /// The slot of a key, and the place of the server that holds it by the even division.
    ///
    /// # Errors
    /// If no server answers.
    pub async fn slot(&self, key: &str) -> Result<(u16, usize)> {
        let server = self.servers.first().context("no server")?;
        let slot: u16 = server.run(&format!("CLUSTER KEYSLOT {key}")).await?;
        let place = (0..SERVERS).find(|place| usize::from(slot) < (place + 1) * SLOTS / SERVERS);
        Ok((slot, place.context("no such slot")?))
    }

    async fn holder(&self, key: &str) -> Result<usize> {
        Ok(self.slot(key).await?.1)
    }

    async fn start_server(&self) -> Result<(Server, u16)> {
        let bus = free_port()?;
        let config =
            format!("cluster-enabled yes\ncluster-node-timeout 2000\ncluster-port {bus}\nappendonly no");
        Ok((Server::start(self.folder.path(), &config).await?, bus))
    }

    /// Waits until every server knows all others and all slots.
    async fn wait_until_whole(&self, servers: usize) -> Result<()> {
        for server in self.servers.iter().chain(&self.replicas) {
            let whole = async || {
                let info = server.run::<String>("CLUSTER INFO").await.unwrap_or_default();
                info.contains("cluster_state:ok") && info.contains(&format!("cluster_known_nodes:{servers}"))
            };
            wait_until("a cluster is whole", whole).await?;
        }
        Ok(())
    }

    /// What a sidecar's `--store` is.
    pub fn url(&self) -> String {
        let hosts: Vec<_> = self.servers.iter().map(|server| server.address.to_string()).collect();
        format!("redis+cluster://{}", hosts.join(","))
    }
}

/// A server on a host of its own, whose cable can be pulled.
pub struct Remote {
    /// The host.
    pub host: Host,
    server: Server,
}

impl Remote {
    /// Starts one.
    ///
    /// # Errors
    /// If there can be no such host, or it does not start.
    pub async fn start(folder: &Path) -> Result<Self> {
        let host = Host::start(folder).await?;
        let address = SocketAddr::from((host.address, free_port()?));
        let mut command = host.command(&tools::redis_server()?);
        command.args(["--bind", "*", "--protected-mode", "no", "--save", "", "--port"]);
        command.arg(address.port().to_string()).arg("--dir").arg(folder);
        let server = Server::run_command(address, command, folder).await?;
        Ok(Self { host, server })
    }

    /// What a sidecar's `--store` is.
    pub fn url(&self) -> String {
        format!("redis://{}/0", self.server.address)
    }
}

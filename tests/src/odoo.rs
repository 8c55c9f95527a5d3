//! A real Odoo: nodes on one PostgreSQL, made in a folder of their own from a source tree.

use std::{
    env,
    fs::{self, File, Permissions},
    os::unix::{
        fs::{PermissionsExt, chown, symlink},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, geteuid, kill_process_group, waitid};
use serde_json::Value;
use tempfile::TempDir;

use crate::{browser, envoy::Endpoint, process::Process, say, tools};

mod person;
mod sharing;

pub use person::{HOST, Person, Websocket};

/// The database and its owner.
const DATABASE: &str = "mooring";
const OWNER: &str = "odoo";
const MODULES: &str = "base,web,mail,bus";

/// Odoo's source and the Python that runs it.
#[derive(Clone, Debug)]
pub struct Tree {
    folder: PathBuf,
    python: PathBuf,
    version: u32,
}

impl Tree {
    /// The tree that `MOORING_ODOO` names, if it names one; with the Python of `MOORING_ODOO_PYTHON`,
    /// else of a `venv` in the tree or beside it, else the one on the PATH.
    ///
    /// # Errors
    /// If there is no `odoo-bin` in it.
    pub fn from_environment() -> Result<Option<Self>> {
        let Some(folder) = env::var_os("MOORING_ODOO").map(PathBuf::from) else { return Ok(None) };
        ensure!(folder.join("odoo-bin").is_file(), "no odoo-bin in {} (MOORING_ODOO)", folder.display());
        let folder = fs::canonicalize(folder)?;
        let beside = ["venv/bin/python", "../venv/bin/python"].map(|path| folder.join(path));
        let python = env::var_os("MOORING_ODOO_PYTHON")
            .map(PathBuf::from)
            .or_else(|| beside.into_iter().find(|path| path.is_file()))
            .unwrap_or_else(|| "python3".into());
        let release = fs::read_to_string(folder.join("odoo/release.py"))?;
        let version = release.split("\nversion_info = (").nth(1).and_then(|rest| rest.split(',').next());
        let version =
            version.and_then(|number| number.parse().ok()).context("odoo/release.py has no version")?;
        Ok(Some(Self { folder, python, version }))
    }

    /// Its `odoo-bin`, with nothing of this process' environment that would change what it does.
    fn command(&self, home: &Path) -> Command {
        let mut command = Command::new(&self.python);
        command.arg(self.folder.join("odoo-bin"));
        command.env_clear().env("PATH", env::var_os("PATH").unwrap_or_default());
        command.env("HOME", home).env("LC_ALL", "C.UTF-8").env("TZ", "UTC");
        command
    }
}

/// A process in a group of its own, with everything that it started. Dropping it asks it to end, waits,
/// and kills what is left of the group.
struct Family {
    process: Process,
    farewell: Signal,
}

impl Family {
    fn start(name: &str, mut command: Command, farewell: Signal, log: &Path) -> Result<Self> {
        command.process_group(0);
        Ok(Self { process: Process::start(name, command, log)?, farewell })
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        let Some(group) = Pid::from_raw(self.process.id() as i32) else { return };
        self.process.signal(self.farewell);
        // Seen to have ended, but not reaped: so long nobody else can get the number of its group.
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        let deadline = Instant::now() + Duration::from_secs(15);
        while matches!(waitid(WaitId::Pid(group), look), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = kill_process_group(group, Signal::KILL);
    }
}

/// A PostgreSQL server on a Unix socket.
struct Postgres {
    _server: Family,
    sockets: PathBuf,
}

impl Postgres {
    /// Where the server's programs are: on the PATH, or the newest where Debian keeps them.
    fn programs() -> Result<PathBuf> {
        if let Some(initdb) = tools::on_path("initdb") {
            return Ok(initdb.with_file_name(""));
        }
        let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let version = |path: &PathBuf| path.parent()?.file_name()?.to_str()?.parse::<u32>().ok();
        let installed = versions.map(|entry| entry.path().join("bin"));
        let installed = installed.filter(|bin| bin.join("initdb").is_file());
        installed.max_by_key(version).context("PostgreSQL's server is needed (Debian: postgresql)")
    }

    /// Whom it runs as: it refuses root.
    fn user() -> Result<Option<(u32, u32)>> {
        if !geteuid().is_root() {
            return Ok(None);
        }
        let users = fs::read_to_string("/etc/passwd")?;
        let ids = |name: &str| {
            let user = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
            let user = user.into_iter().find(|fields| fields.first() == Some(&name))?;
            Some((user.get(2)?.parse().ok()?, user.get(3)?.parse().ok()?))
        };
        Ok(Some(["postgres", "nobody"].into_iter().find_map(ids).context("no user but root")?))
    }

    async fn start(folder: &Path) -> Result<Self> {
        let (programs, user) = (Self::programs()?, Self::user()?);
        let [data, sockets] = ["pg", "sockets"].map(|name| folder.join(name));
        for folder in [&data, &sockets] {
            fs::create_dir(folder)?;
            if let Some((user, group)) = user {
                chown(folder, Some(user), Some(group))?;
            }
        }
        let command = |name: &str| {
            let mut command = Command::new(programs.join(name));
            command.arg("-D").arg(&data).current_dir(&data).env_clear().env("LC_ALL", "C.UTF-8");
            if let Some((user, group)) = user {
                command.uid(user).gid(group);
            }
            command
        };
        let mut initdb = command("initdb");
        initdb.args(["-U", OWNER, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]);
        let output = initdb.output()?;
        ensure!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));

        let mut server = command("postgres");
        server.arg("-k").arg(&sockets).args(["-c", "listen_addresses="]);
        for setting in ["fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=200"]
        {
            server.args(["-c", setting]);
        }
        let log = folder.join("postgres.log");
        // SIGQUIT: at once, but its shared memory is given back.
        let mut server = Family::start("PostgreSQL", server, Signal::QUIT, &log)?;
        let socket = sockets.join(".s.PGSQL.5432");
        let ready = async || tokio::net::UnixStream::connect(&socket).await.ok();
        server.process.wait(Duration::from_secs(30), ready).await?;
        Ok(Self { _server: server, sockets })
    }
}

/// Nodes of an Odoo, with one database and one filestore. Dropping it ends and removes it all.
pub struct Odoo {
    nodes: Vec<Option<Family>>,
    /// How many workers a node is started with.
    pub workers: u32,
    /// The sidecar's socket for the ORM cache of a node; none: it runs without the module.
    pub cache_sockets: Vec<Option<PathBuf>>,
    postgres: Postgres,
    tree: Tree,
    folder: TempDir,
}

impl Odoo {
    /// Makes a database for `nodes` nodes, none of which is started yet.
    ///
    /// # Errors
    /// If that fails.
    pub async fn install(tree: Tree, nodes: usize) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("odoo-").tempdir()?;
        // PostgreSQL may run as somebody else.
        fs::set_permissions(&folder, Permissions::from_mode(0o755))?;
        say("real Odoo: starting PostgreSQL");
        let postgres = Postgres::start(folder.path()).await?;
        fs::create_dir(folder.path().join("filestore"))?;
        let cache_sockets = vec![None; nodes];
        let nodes_ = (0..nodes).map(|_| None).collect();
        let odoo = Self { nodes: nodes_, workers: 2, cache_sockets, postgres, tree, folder };
        for place in 0..nodes {
            fs::create_dir_all(odoo.data(place))?;
            symlink(odoo.folder.path().join("filestore"), odoo.data(place).join("filestore"))?;
        }
        say(&format!("real Odoo: installing {MODULES} (takes a quarter of a minute or more)"));
        let started = Instant::now();
        let mut command = odoo.command(0);
        command.args(["--no-http", "--workers=0", "--without-demo=all", "--stop-after-init", "-i", MODULES]);
        let log = odoo.folder.path().join("install.log");
        let output = File::create(&log)?;
        let status = command.stdout(output.try_clone()?).stderr(output).status()?;
        ensure!(status.success(), "odoo-bin ended with {status}:\n{}", fs::read_to_string(&log)?);
        say(&format!("real Odoo: installed in {:.0} s", started.elapsed().as_secs_f64()));
        Ok(odoo)
    }

    fn data(&self, place: usize) -> PathBuf {
        self.folder.path().join(format!("node-{}", place + 1))
    }

    fn command(&self, place: usize) -> Command {
        let mut command = self.tree.command(self.folder.path());
        command.arg("--addons-path").arg(self.tree.folder.join("addons"));
        command.arg("--data-dir").arg(self.data(place)).arg("--db_host").arg(&self.postgres.sockets);
        command.args(["--db_port=5432", "--db_user", OWNER, "--database", DATABASE]);
        command.args([&format!("--db-filter=^{DATABASE}$"), "--no-database-list", "--max-cron-threads=0"]);
        command
    }

    /// Starts a node, with the sessions that it left, and waits until both its ports answer.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn start(&mut self, place: usize, endpoint: Endpoint) -> Result<()> {
        let Endpoint { http, gevent } = endpoint;
        let mut command = self.command(place);
        command.args(["--proxy-mode", &format!("--workers={}", self.workers), "--http-interface=127.0.0.1"]);
        self.share(place, &mut command)?;
        command.args(["--limit-time-cpu=600", "--limit-time-real=1200"]);
        command.args([format!("--http-port={}", http.port()), format!("--gevent-port={}", gevent.port())]);
        let name = format!("Odoo {}", place + 1);
        let mut node = Family::start(&name, command, Signal::TERM, &self.log(place))?;
        let healthy = async || {
            for (server, path) in [(http, "/web/health"), (gevent, "/websocket/health")] {
                browser::get(server, path).await.ok().filter(|answer| answer.status == 200)?;
            }
            Some(())
        };
        node.process.wait(Duration::from_secs(60), healthy).await?;
        self.nodes[place] = Some(node);
        Ok(())
    }

    /// Ends a node: as a service manager does, or by killing all its processes at once.
    ///
    /// # Errors
    /// If it is not running.
    pub async fn stop(&mut self, place: usize, farewell: Signal) -> Result<()> {
        let mut node = self.nodes[place].take().context("the node is not running")?;
        if farewell == Signal::KILL {
            // The children too: only the leader of the group is asked to end.
            let group = Pid::from_raw(node.process.id() as i32).context("no process")?;
            kill_process_group(group, Signal::KILL)?;
        }
        node.farewell = farewell;
        Ok(tokio::task::spawn_blocking(move || drop(node)).await?)
    }

    fn log(&self, place: usize) -> PathBuf {
        self.folder.path().join(format!("node-{}.log", place + 1))
    }

    /// Odoo's version, such as 18.
    pub fn version(&self) -> u32 {
        self.tree.version
    }

    /// The path of the page that people work on.
    pub fn page(&self) -> &'static str {
        if self.version() < 18 { "/web" } else { "/odoo" }
    }

    /// What is in a node's file of a session, if it has one.
    pub fn session(&self, place: usize, sid: &str) -> Option<Value> {
        let file = self.session_file(place, sid)?;
        if self.version() < 18 {
            let script = "import json, pickle, sys; \
                          print(json.dumps(pickle.load(open(sys.argv[1], 'rb')), default=str))";
            let output = Command::new(&self.tree.python).args(["-c", script]).arg(file).output().ok()?;
            return serde_json::from_slice(&output.stdout).ok();
        }
        serde_json::from_slice(&fs::read(file).ok()?).ok()
    }

    /// Has a session be older than it is.
    ///
    /// # Errors
    /// If the node has no file of it that says when it was made, or it cannot be written.
    pub fn age(&self, place: usize, sid: &str, by: Duration) -> Result<()> {
        let mut session = self.session(place, sid).context("no such session")?;
        let made = session["create_time"].as_f64().context("a session of no age")?;
        session["create_time"] = (made - by.as_secs_f64()).into();
        let temporary = self.sessions(place).join("aged.__wz_sess");
        fs::write(&temporary, session.to_string())?;
        Ok(fs::rename(temporary, self.session_file(place, sid).context("no such session")?)?)
    }

    /// A node's file of a session, if it has one.
    fn session_file(&self, place: usize, sid: &str) -> Option<PathBuf> {
        Some(self.sessions(place).join(sid.get(..2)?).join(sid)).filter(|file| file.is_file())
    }

    /// Where a node keeps its sessions.
    pub fn sessions(&self, place: usize) -> PathBuf {
        self.data(place).join("sessions")
    }

    /// The nodes that have a file of a session.
    pub fn holders(&self, sid: &str) -> Vec<usize> {
        (0..self.nodes.len()).filter(|place| self.session_file(*place, sid).is_some()).collect()
    }
}

//! Directories of small files are the same on all nodes, and nothing of them can be read in the store.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{
    browser,
    process::{Process, free_port, wait_until},
    program,
    redis_servers::Server,
};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);
const SECRET: &str = "a secret of at least thirty-two characters";
/// Three looks, and some more.
const WHILE: Duration = Duration::from_secs(4);

/// Two nodes, each with a sidecar that replicates a directory in either mode.
struct World {
    folder: TempDir,
    redis: Server,
    sidecars: Vec<(Process, SocketAddr)>,
}

impl World {
    async fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let redis = Server::start(folder.path(), "").await?;
        let mut world = Self { folder, redis, sidecars: vec![] };
        for node in ["a", "b"] {
            for set in ["newest", "adds"] {
                fs::create_dir_all(world.path(node, set, ""))?;
            }
            let sidecar = world.sidecar(node).await?;
            world.sidecars.push(sidecar);
        }
        Ok(world)
    }

    async fn sidecar(&self, node: &str) -> Result<(Process, SocketAddr)> {
        let listen: SocketAddr = ([127, 0, 0, 1], free_port()?).into();
        let mut command = Command::new(program("mooring"));
        command.args(["serve", "--listen", &listen.to_string()]).env("MOORING_SECRET", SECRET);
        command.args(["--store", &format!("redis://{}/0", self.redis.address)]);
        for (set, mode) in [("newest", "newest"), ("adds", "add")] {
            command.args(["--replicate", &format!("{}={mode}", self.path(node, set, "").display())]);
        }
        let log = self.folder.path().join(format!("sidecar-{node}.log"));
        let mut sidecar = Process::start("a sidecar", command, &log)?;
        sidecar.wait(PATIENCE, async || browser::get(listen, "/healthz").await.ok()).await?;
        Ok((sidecar, listen))
    }

    fn path(&self, node: &str, set: &str, name: &str) -> PathBuf {
        self.folder.path().join(node).join(set).join(name)
    }

    /// Waits until a file has this content on both nodes; none: until it is gone.
    async fn both_have(&self, set: &str, name: &str, content: Option<&str>) -> Result<()> {
        for node in ["a", "b"] {
            let path = self.path(node, set, name);
            let what = format!("{} has {content:?}", path.display());
            wait_until(&what, async || read(&path).as_deref() == content).await?;
        }
        Ok(())
    }

    /// All that Redis has, as bytes.
    async fn dump(&self) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        for key in self.redis.run::<Vec<String>>("KEYS *").await? {
            all.extend_from_slice(key.as_bytes());
            let kind: String = self.redis.run(&format!("TYPE {key}")).await?;
            let read = match kind.as_str() {
                "hash" => format!("HGETALL {key}"),
                "zset" => format!("ZRANGE {key} 0 -1"),
                "stream" => continue,
                "set" => format!("SMEMBERS {key}"),
                _ => format!("GET {key}"),
            };
            let found = self.redis.run::<redis::Value>(&read).await?;
            collect(&found, &mut all);
        }
        Ok(all)
    }
}

/// The bytes of an answer.
fn collect(value: &redis::Value, all: &mut Vec<u8>) {
    match value {
        redis::Value::BulkString(bytes) => all.extend_from_slice(bytes),
        redis::Value::Array(values) => values.iter().for_each(|value| collect(value, all)),
        redis::Value::Map(pairs) => pairs.iter().for_each(|(key, value)| {
            collect(key, all);
            collect(value, all);
        }),
        _ => {}
    }
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

fn shows(haystack: &[u8], needle: &str) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle.as_bytes())
}

#[tokio::test]
async fn a_directory_is_the_same_everywhere_and_nothing_of_it_can_be_read_in_the_store() -> Result<()> {
    let world = World::start().await?;
    let on = |node, name| world.path(node, "newest", name);
    let (name, content) = ("associations/https-example", "a shared key of somebody");
    fs::create_dir(on("a", "associations"))?;
    fs::write(on("a", name), content)?;
    fs::set_permissions(on("a", name), fs::Permissions::from_mode(0o640))?;
    world.both_have("newest", name, Some(content)).await?;
    let mode_is = async || fs::metadata(on("b", name)).is_ok_and(|meta| meta.mode() & 0o777 == 0o640);
    wait_until("its mode is the same", mode_is).await?;
    let times = ["a", "b"].map(|node| fs::metadata(on(node, name)).and_then(|meta| meta.modified()).ok());
    ensure!(times[0] == times[1] && times[0].is_some(), "{times:?}");

    fs::write(on("b", name), "changed on the other node")?;
    world.both_have("newest", name, Some("changed on the other node")).await?;
    let dump = world.dump().await?;
    ensure!(shows(&dump, "mooring:files:{newest}"), "there is nothing in Redis");
    for secret in ["associations", "https-example", content, "changed on", SECRET] {
        ensure!(!shows(&dump, secret), "{secret:?} shows in Redis");
    }

    let outside = world.folder.path().join("outside");
    fs::write(&outside, "outside")?;
    symlink(&outside, on("a", "link"))?;
    fs::File::create(on("a", "giant"))?.set_len((256 << 10) + 1)?;
    fs::write(on("a", "unfinished.tmp"), "half")?;
    fs::remove_file(on("a", name))?;
    world.both_have("newest", name, None).await?;
    for left in ["link", "giant", "unfinished.tmp"] {
        ensure!(fs::symlink_metadata(on("b", left)).is_err(), "{left} is carried");
        ensure!(fs::symlink_metadata(on("a", left)).is_ok(), "{left} is gone");
    }
    let metrics = browser::get(world.sidecars[0].1, "/metrics").await?.text();
    for (outcome, least) in [("Published", 2), ("Written", 1), ("Refused", 2)] {
        let label = format!(r#"mooring_replicated_files_total{{set="newest",outcome="{outcome}"}} "#);
        let count = metrics.lines().find_map(|line| line.strip_prefix(&label)).context("no such metric")?;
        ensure!(count.parse::<u32>()? >= least, "{outcome}: {count}");
    }
    Ok(())
}

#[tokio::test]
async fn what_is_only_added_to_keeps_what_others_delete_and_an_emptied_redis_is_filled() -> Result<()> {
    let world = World::start().await?;
    for (node, set, name) in [("a", "adds", "one"), ("b", "adds", "two"), ("a", "newest", "three")] {
        fs::write(world.path(node, set, name), name)?;
        world.both_have(set, name, Some(name)).await?;
    }
    fs::write(world.path("b", "newest", "gone"), "gone")?;
    world.both_have("newest", "gone", Some("gone")).await?;
    fs::remove_file(world.path("b", "newest", "gone"))?;
    world.both_have("newest", "gone", None).await?;
    fs::remove_file(world.path("a", "adds", "one"))?;
    fs::write(world.path("a", "newest", "three"), "four")?;
    world.both_have("newest", "three", Some("four")).await?;
    tokio::time::sleep(WHILE).await;
    ensure!(read(&world.path("b", "adds", "one")).as_deref() == Some("one"), "a deletion travels");
    ensure!(read(&world.path("a", "adds", "one")).is_none(), "it is put back");

    world.redis.run::<()>("FLUSHALL").await?;
    let filled = async || {
        let fields = world.redis.run::<u32>("HLEN mooring:files:{newest}").await;
        // The file, the one that is gone, and what is told of the store itself.
        fields.is_ok_and(|fields| fields == 4)
    };
    wait_until("Redis knows the files again", filled).await?;
    tokio::time::sleep(WHILE).await;
    world.both_have("newest", "three", Some("four")).await?;
    world.both_have("newest", "gone", None).await?;
    world.both_have("adds", "two", Some("two")).await?;

    // A node with an empty disk gets everything from the store.
    let mut world = world;
    drop(world.sidecars.pop());
    for set in ["newest", "adds"] {
        fs::remove_dir_all(world.path("b", set, ""))?;
        fs::create_dir(world.path("b", set, ""))?;
    }
    let sidecar = world.sidecar("b").await?;
    world.sidecars.push(sidecar);
    world.both_have("newest", "three", Some("four")).await?;
    world.both_have("adds", "two", Some("two")).await?;
    fs::write(world.path("b", "newest", "five"), "five")?;
    world.both_have("newest", "five", Some("five")).await
}

//! A session whose file is none that is carried is left alone: it ends nowhere, and is carried again later.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use harness::process::wait_until;
use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::*;

/// Longer than a file must be gone to be taken for a logout.
const WHILE: Duration = Duration::from_millis(1_300);

/// More than is carried.
const LARGE: u64 = 300_000;

/// A sidecar with the sessions directories of two nodes.
struct World {
    sidecar: Sidecar,
    _nodes: [FakeNode; 2],
    folder: TempDir,
}

impl World {
    async fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let nodes = [FakeNode::start(&[200]).await?, FakeNode::start(&[200]).await?];
        let sessions = ["a", "b"].map(|id| format!("{id}={}", folder.path().join(id).display()));
        for id in ["a", "b"] {
            fs::create_dir(folder.path().join(id))?;
        }
        let specs = [nodes[0].spec("a"), nodes[1].spec("b")];
        let arguments = ["--sessions", &sessions[0], "--sessions", &sessions[1]];
        let mut sidecar = Sidecar::start(&specs, &arguments).await?;
        sidecar.wait_until_ready().await?;
        sidecar.wait_for(&[NodeState::Active, NodeState::Active]).await?;
        Ok(Self { sidecar, _nodes: nodes, folder })
    }

    fn path(&self, node: &str, sid: &str) -> PathBuf {
        self.folder.path().join(node).join(&sid[..2]).join(sid)
    }

    /// Saves a session as Odoo does.
    fn save(&self, node: &str, sid: &str, content: &str) -> Result<()> {
        let temporary = self.folder.path().join(node).join("odoo.__wz_sess");
        fs::write(&temporary, content)?;
        fs::create_dir_all(self.folder.path().join(node).join(&sid[..2]))?;
        Ok(fs::rename(temporary, self.path(node, sid))?)
    }

    async fn has(&self, node: &str, sid: &str, content: &str) -> Result<()> {
        let what = format!("{node} has {content}");
        wait_until(&what, async || read(&self.path(node, sid)) == content).await.map(drop)
    }

    fn log(&self) -> String {
        self.sidecar.process.printed()
    }
}

/// Makes a file larger where it is, at once: what is written piece by piece is small for a moment.
fn grow(path: &Path) -> Result<()> {
    Ok(fs::File::options().write(true).open(path)?.set_len(LARGE)?)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn session(number: usize) -> String {
    format!(r#"{{"uid": 2, "number": {number}}}"#)
}

#[tokio::test]
async fn a_session_that_is_left_alone_ends_nowhere_and_is_carried_again() -> Result<()> {
    let world = World::start().await?;
    let sid = "s".repeat(84);
    let here = world.path("a", &sid);
    world.save("a", &sid, &session(0))?;
    world.has("b", &sid, &session(0)).await?;
    let large = "x".repeat(LARGE as usize);
    let aside = world.folder.path().join("aside");
    // Whatever takes the place of the file, and that it grows where it is.
    let kinds: [(&str, &dyn Fn() -> Result<()>); 6] = [
        ("too large", &|| world.save("a", &sid, &large)),
        ("grown", &|| grow(&here)),
        ("a link", &|| {
            fs::rename(&here, &aside)?;
            Ok(symlink(&aside, &here)?)
        }),
        ("a pipe", &|| {
            fs::remove_file(&here)?;
            Ok(mknodat(CWD, &here, FileType::Fifo, Mode::RUSR, 0)?)
        }),
        ("a folder", &|| {
            fs::remove_file(&here)?;
            Ok(fs::create_dir(&here)?)
        }),
        ("a second name", &|| {
            fs::hard_link(&here, world.folder.path().join("second"))?;
            // Of another name the kernel tells nobody who watches the folder.
            Ok(fs::set_permissions(&here, fs::Permissions::from_mode(0o644))?)
        }),
    ];
    for (number, (kind, change)) in kinds.iter().enumerate() {
        change().with_context(|| kind.to_string())?;
        tokio::time::sleep(WHILE).await;
        ensure!(here.symlink_metadata().is_ok(), "{kind}: it is gone here");
        ensure!(read(&world.path("b", &sid)) == session(number), "{kind}: it has ended at the standby");
        world.sidecar.wait_until_counted(r#""left_alone":1"#).await.context(*kind)?;
        if here.is_dir() {
            fs::remove_dir(&here)?;
        }
        world.save("a", &sid, &session(number + 1))?;
        world.has("b", &sid, &session(number + 1)).await.context(*kind)?;
        world.sidecar.wait_until_counted(r#""left_alone":0"#).await.context(*kind)?;
    }
    // What the standby has instead of a copy is left alone, too, and its server's people are none the worse.
    let there = world.path("b", &sid);
    grow(&there)?;
    world.sidecar.wait_until_counted(r#""left_alone":1"#).await?;
    world.save("a", &sid, &session(90))?;
    tokio::time::sleep(WHILE).await;
    ensure!(fs::metadata(&there)?.len() == LARGE && read(&here) == session(90));
    world.save("b", &sid, &session(90))?;
    world.sidecar.wait_until_counted(r#""left_alone":0"#).await?;
    // Another session that was never anything else, and goes, ends nobody else's.
    let other = "t".repeat(84);
    world.save("a", &other, &large)?;
    world.sidecar.wait_until_counted(r#""left_alone":1"#).await?;
    fs::remove_file(world.path("a", &other))?;
    world.sidecar.wait_until_counted(r#""left_alone":0"#).await?;
    ensure!(world.path("b", &sid).exists());
    // And a logout is one.
    fs::remove_file(&here)?;
    wait_until("a logout ends it", async || !there.exists()).await?;

    let metrics = world.sidecar.get("/metrics").await?.text();
    for expected in [
        r#"mooring_session_copies_total{node="a",outcome="LeftAlone"} 7"#,
        r#"mooring_session_copies_total{node="b",outcome="LeftAlone"} 1"#,
        r#"mooring_left_alone_sessions{node="a"} 0"#,
    ] {
        ensure!(metrics.contains(expected), "{expected} is not in {metrics}");
    }
    for reason in ["larger than 256 KB", "no plain file", "several names"] {
        ensure!(world.log().contains(reason), "{reason} is not in {}", world.log());
    }
    ensure!(!world.log().contains(&sid[..42]), "the log has a session's id");
    Ok(())
}

#[tokio::test]
async fn a_fault_of_many_sessions_is_told_once() -> Result<()> {
    let world = World::start().await?;
    let sids: Vec<String> = (0..20).map(|number| format!("{number:02}").repeat(42)).collect();
    let large = "x".repeat(LARGE as usize);
    for sid in &sids {
        world.save("a", sid, &large)?;
    }
    world.sidecar.wait_until_counted(r#""left_alone":20"#).await?;
    let told = world.log().matches("larger than 256 KB").count();
    ensure!(told == 1, "told {told} times: {}", world.log());
    let mut nodes = mooring(&["nodes", "--sidecar", &world.sidecar.address.to_string()]);
    nodes.env("COLUMNS", "200");
    let printed = run(nodes)?;
    let printed = String::from_utf8_lossy(&printed.stdout).into_owned();
    ensure!(printed.contains("20 left alone"), "{printed}");
    Ok(())
}

//! What goes wrong in a night.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{host::Host, process::wait_until, program, say, small_disk::SmallDisk, witnesses::Wrong};
use rustix::process::Signal;
use serde_json::Value;
use tokio::time::sleep;

use crate::night::{Excuse, Night};

#[tokio::test]
async fn a_node_is_killed_and_comes_back() -> Result<()> {
    for profile in [16, 18, 19] {
        Night::new("kill -9 of a node, back after 3 s", profile)
            .pass(async |town, recipe, _| {
                town.stack.kill_node("odoo-2");
                drop(recipe.nodes[1].process.take());
                sleep(Duration::from_secs(3)).await;
                town.stack.start_node(1).await?;
                recipe.start_node(1).await?;
                sleep(Duration::from_secs(4)).await;
                Ok(None)
            })
            .await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_node_and_the_sidecar_beside_it_die_together() -> Result<()> {
    Night::new("a host is gone, node and sidecar, back with an empty disk; then the next one", 18)
        .pass(async |town, recipe, _| {
            // An answer waits at most 0.3 s until what it tells is copied.
            let gone = Instant::now() - Duration::from_millis(50);
            drop(town.beside[0].take());
            town.stack.kill_node("odoo-1");
            let gone = gone..Instant::now() + Duration::from_millis(500);
            drop(recipe.nodes[0].process.take());
            sleep(Duration::from_secs(3)).await;
            for sessions in [town.stack.sessions("odoo-1"), recipe.sessions("odoo-1")] {
                std::fs::remove_dir_all(sessions)?;
            }
            town.stack.start_node(0).await?;
            town.start_beside(0).await?;
            recipe.start_node(0).await?;
            town.stack.wait_for_state("odoo-1", "active").await?;
            // Longer than Envoy leaves it out. Then it has what it is the standby of.
            sleep(Duration::from_secs(7)).await;
            town.stack.kill_node("odoo-2");
            drop(recipe.nodes[1].process.take());
            sleep(Duration::from_secs(4)).await;
            Ok(Some(Excuse {
                why: "who logged in as their host died has no copy anywhere",
                holds: Box::new(move |trouble| {
                    let session = &trouble.session;
                    trouble.wrong == Wrong::Logout
                        && session.node == "odoo-1"
                        && gone.contains(&session.since)
                }),
            }))
        })
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_host_freezes() -> Result<()> {
    Night::new("a host freezes for 8 s, node and sidecar", 19)
        .pass(async |town, recipe, _| {
            let ours = town.stack.nodes[1].process.as_ref().expect("a running node");
            let beside = town.beside[1].as_ref().expect("a running sidecar");
            let theirs = recipe.nodes[1].process.as_ref().expect("a running node");
            for signal in [Signal::STOP, Signal::CONT] {
                ours.signal(signal);
                beside.signal(signal);
                theirs.signal(signal);
                sleep(Duration::from_secs(if signal == Signal::STOP { 8 } else { 3 })).await;
            }
            Ok(None)
        })
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_host_cannot_be_reached() -> Result<()> {
    let folder = tempfile::tempdir()?;
    if let Err(error) = Host::start(folder.path()).await {
        say(&format!("SKIPPED: no network namespace for a node can be made: {error:#}"));
        return Ok(());
    }
    let name = "a host cannot be reached for 8 s, its node and sidecar run on";
    let night = Night { apart: true, ..Night::new(name, 19) };
    let passed = night.pass(async |town, recipe, notices| {
        let hosts = [&town.host, &recipe.host].map(Option::as_deref);
        let gone = Instant::now();
        hosts.into_iter().flatten().try_for_each(Host::unplug)?;
        sleep(Duration::from_secs(8)).await;
        hosts.into_iter().flatten().try_for_each(Host::plug)?;
        let back = Instant::now();
        town.stack.wait_for_state("odoo-2", "active").await?;
        sleep(Duration::from_secs(3)).await;
        let notices = notices.lock().expect("no panic");
        let ended = notices.dead.iter().filter(|(_, ended)| (gone..back).contains(&ended.since)).count();
        println!("{ended} sessions were logged out meanwhile");
        ensure!(ended > 5, "only {ended} sessions were logged out meanwhile");
        Ok(None)
    });
    passed.await.map(drop)
}

#[tokio::test]
async fn a_sessions_directory_is_emptied() -> Result<()> {
    Night::new("the sessions directory of a node is emptied", 19)
        .pass(async |town, recipe, _| {
            for sessions in [town.stack.sessions("odoo-3"), recipe.sessions("odoo-3")] {
                for entry in std::fs::read_dir(sessions)? {
                    let path = entry?.path();
                    // Odoo may write there meanwhile.
                    let _ = std::fs::remove_dir_all(path);
                }
            }
            sleep(Duration::from_secs(4)).await;
            Ok(None)
        })
        .await?;
    Ok(())
}

/// Everything that is new is rolled out: each node is emptied, stopped and started again.
#[tokio::test]
async fn all_nodes_are_replaced_one_by_one() -> Result<()> {
    Night::new("all nodes replaced one by one, drained before", 19)
        .pass(async |town, recipe, _| {
            for place in 0..3 {
                let id = format!("odoo-{}", place + 1);
                let mut drain = Command::new(program("mooring"));
                drain.args(["drain", &id, "--move", "--wait", "--timeout-seconds", "20", "--rate", "500"]);
                drain.args(["--sidecar", &town.stack.sidecar_address.to_string()]);
                let drained = tokio::task::spawn_blocking(move || drain.output()).await??;
                ensure!(drained.status.success(), "{}", String::from_utf8_lossy(&drained.stderr));
                town.stack.kill_node(&id);
                drop(recipe.nodes[place].process.take());
                sleep(Duration::from_secs(1)).await;
                town.stack.start_node(place).await?;
                recipe.start_node(place).await?;
                town.stack.wait_for_state(&id, "draining").await?;
                let mut undrain = Command::new(program("mooring"));
                undrain.args(["undrain", &id, "--sidecar", &town.stack.sidecar_address.to_string()]);
                ensure!(tokio::task::spawn_blocking(move || undrain.output()).await??.status.success());
                town.stack.wait_for_state(&id, "active").await?;
                sleep(Duration::from_secs(3)).await;
            }
            Ok(None)
        })
        .await?;
    Ok(())
}

/// A host is away while its sessions change, move and end; what it then has is of no use any more.
#[tokio::test]
async fn a_node_comes_back_after_everything_changed() -> Result<()> {
    let notices = Night::new("a host is away for 12 s of changes", 19)
        .pass(async |town, recipe, _| {
            drop(town.beside[1].take());
            town.stack.kill_node("odoo-2");
            drop(recipe.nodes[1].process.take());
            sleep(Duration::from_secs(12)).await;
            town.stack.start_node(1).await?;
            town.start_beside(1).await?;
            recipe.start_node(1).await?;
            sleep(Duration::from_secs(4)).await;
            Ok(None)
        })
        .await?;
    ensure!(notices.dead.len() > 20, "only {} people logged out", notices.dead.len());
    Ok(())
}

#[tokio::test]
async fn redis_is_lost_during_a_failover() -> Result<()> {
    let night = Night::new("Redis lost, a node killed, Redis back empty after 4 s, the node too", 18);
    let passed = night.pass(async |town, recipe, _| {
        let lost = Instant::now() - Duration::from_millis(200);
        drop(town.redis.take());
        town.stack.kill_node("odoo-1");
        let alone = lost..Instant::now() + Duration::from_millis(200);
        drop(recipe.nodes[0].process.take());
        sleep(Duration::from_secs(4)).await;
        town.start_redis().await?;
        let silent = lost..Instant::now() + Duration::from_millis(200);
        town.stack.start_node(0).await?;
        recipe.start_node(0).await?;
        sleep(Duration::from_secs(10)).await;
        Ok(Some(Excuse {
            why: "without Redis nobody copies what begins, nor tells the others what ends",
            holds: Box::new(move |trouble| match trouble.wrong {
                Wrong::Get => false,
                Wrong::Logout => alone.contains(&trouble.session.since),
                Wrong::Stolen => silent.contains(&trouble.session.since),
            }),
        }))
    });
    passed.await.map(drop)
}

#[tokio::test]
async fn the_disk_of_a_node_is_full() -> Result<()> {
    let folder = tempfile::tempdir()?;
    if let Err(error) = SmallDisk::mount(folder.path()) {
        say(&format!("SKIPPED: no small disk can be mounted: {error:#}"));
        return Ok(());
    }
    let name = "the disk of a node's sessions is full for 5 s, then another node is killed";
    let night = Night { small_disk: true, ..Night::new(name, 19) };
    let passed = night.pass(async |town, recipe, _| {
        let sessions = town.stack.sessions("odoo-1");
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(5) {
            for disk in [&town.disk, &recipe.disk] {
                disk.as_ref().context("no disk")?.fill()?;
            }
            ensure!(half_written(&sessions)? == 0, "a file is half-written");
            sleep(Duration::from_millis(5)).await;
        }
        town.stack.wait_for_state("odoo-1", "down").await?;
        // Whose files Odoo could not write anew are shown the login page at their next click.
        let full = began..Instant::now() + Duration::from_secs(2);
        let failed = r#"mooring_session_copies_total{node="odoo-1",outcome="Failed"}"#;
        ensure!(town.metric(0, failed).await? > 0, "no copy failed");
        let printed = town.beside[0].as_ref().context("no sidecar")?.printed();
        ensure!(printed.contains("No space left on device"), "nobody is told of a full disk");
        for disk in [&town.disk, &recipe.disk] {
            disk.as_ref().context("no disk")?.free()?;
        }
        town.stack.wait_for_state("odoo-1", "active").await?;
        // Who logged in elsewhere meanwhile has a copy here now.
        let waiting = r#"mooring_waiting_sessions{node="odoo-1"}"#;
        let carried = async || town.metric(0, waiting).await.is_ok_and(|waiting| waiting == 0);
        let took = wait_until("the copies are written that the disk had no room for", carried).await?;
        println!("all copies written {took:.1?} after there was room");
        town.stack.kill_node("odoo-2");
        drop(recipe.nodes[1].process.take());
        sleep(Duration::from_secs(4)).await;
        ensure!(half_written(&sessions)? == 0, "a file is half-written");
        wait_until("nothing unfinished is left", async || !unfinished(&sessions)).await?;
        Ok(Some(Excuse {
            why: "Odoo could not save the session on the full disk, or had just deleted it to write it anew",
            holds: Box::new(move |trouble| {
                let was_full = full.contains(&trouble.when) && trouble.node == "odoo-1";
                match trouble.wrong {
                    Wrong::Get => was_full && trouble.status == Some(500),
                    Wrong::Logout => was_full,
                    Wrong::Stolen => false,
                }
            }),
        }))
    });
    passed.await.map(drop)
}

/// Files of sessions that no Odoo could read.
fn half_written(sessions: &Path) -> Result<usize> {
    let mut count = 0;
    for folder in std::fs::read_dir(sessions)? {
        for file in std::fs::read_dir(folder?.path()).into_iter().flatten() {
            // It may be gone by now.
            let Ok(content) = std::fs::read(file?.path()) else { continue };
            count += usize::from(serde_json::from_slice::<Value>(&content).is_err());
        }
    }
    Ok(count)
}

/// Whether a file of the sidecar's that was not finished is there.
fn unfinished(sessions: &Path) -> bool {
    let names = std::fs::read_dir(sessions).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.into_iter().any(|name| name.to_string_lossy().starts_with("mooring-"))
}

#[tokio::test]
async fn clocks_differ() -> Result<()> {
    let clocks = vec![90, 0, -90];
    let night = Night { clocks, ..Night::new("clocks 90 s apart, a node killed, back after 3 s", 19) };
    night
        .pass(async |town, recipe, _| {
            town.stack.kill_node("odoo-1");
            drop(recipe.nodes[0].process.take());
            sleep(Duration::from_secs(3)).await;
            town.stack.start_node(0).await?;
            recipe.start_node(0).await?;
            sleep(Duration::from_secs(4)).await;
            Ok(None)
        })
        .await?;
    Ok(())
}

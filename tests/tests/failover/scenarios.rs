//! What goes wrong in a night, while people work: behind Mooring, and behind nginx with `ip_hash` at the
//! same time.

use std::{
    ops::Range,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use harness::{
    browser::{Browser, http1},
    program,
};
use rustix::process::Signal;
use tokio::{sync::Mutex, time::sleep};

use crate::{
    crowd::{Crowd, Notices},
    town::{Recipe, Town},
};

/// How many people work behind each.
fn people() -> usize {
    std::env::var("MOORING_PEOPLE").ok().and_then(|text| text.parse().ok()).unwrap_or(60)
}

/// Two nights at once would measure each other.
pub static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

const WARM_UP: Duration = Duration::from_secs(3);

/// One bad night: what happens to Mooring's servers, and the same to nginx's. It may say when sessions
/// began that could not be copied before their node died.
async fn night_with_clocks(
    name: &str,
    profile: u32,
    clocks: Vec<i64>,
    happens: impl AsyncFnOnce(&mut Town, &mut Recipe) -> Result<Option<Range<Instant>>>,
) -> Result<Notices> {
    let _alone = ONE_AT_A_TIME.lock().await;
    // Faster than Odoo's three hours and two minutes, unless clocks differ by more than that.
    let quick = ["--rotation-secs", "4", "--rotation-grace-secs", "4"];
    let slow = ["--rotation-secs", "20", "--rotation-grace-secs", "120"];
    let standin_args: &[&str] = if clocks.is_empty() { &quick } else { &slow };
    let mut town = Town::start(profile, standin_args, clocks).await?;
    let mut recipe = Recipe::start(profile, standin_args).await?;
    let connections = http1();
    let seed = rand::random();
    let ours = Crowd::start(&connections, town.stack.address, people(), seed).await?;
    let theirs = Crowd::start(&connections, recipe.address, people(), seed).await?;
    sleep(WARM_UP).await;
    let alone = happens(&mut town, &mut recipe).await?;
    let (mut ours, mut theirs) = (ours.end().await?, theirs.end().await?);
    // What is under way ends.
    sleep(Duration::from_secs(2)).await;
    let risen = risen(&town, &ours).await?;
    let lost = lost(&town, &ours).await?;
    let metrics = harness::browser::get(town.stack.sidecar_address, "/metrics").await?.text();
    let unsettled = metrics.lines().find_map(|line| line.strip_prefix("mooring_entries_unsettled_total "));
    println!("{name} (Odoo {profile}, {} people behind each)", people());
    let row = |cells: [&str; 8]| {
        let [who, requests, gets, posts, wrong, detours, logouts, gaps] = cells;
        println!("  {who:<14}{requests:>9}{gets:>12}{posts:>13}{wrong:>11}{detours:>8}{logouts:>8}   {gaps}");
    };
    row([
        "",
        "requests",
        "failed GETs",
        "failed POSTs",
        "wrong user",
        "detours",
        "logouts",
        "gap p50/p99/max",
    ]);
    for (who, notices) in [("Mooring", &mut ours), ("nginx ip_hash", &mut theirs)] {
        let gaps = [0.5, 0.99, 1.0].map(|share| format!("{:.1?}", notices.gap(share))).join(" / ");
        let counts = [notices.requests, notices.failed_gets, notices.failed_posts, notices.wrong_user];
        let [requests, gets, posts, wrong] = counts.map(|count| count.to_string());
        let (detours, logouts) = (notices.detours.to_string(), notices.logouts.to_string());
        row([who, &requests, &gets, &posts, &wrong, &detours, &logouts, &gaps]);
    }
    println!(
        "  {} logged out by themselves, {risen} of them valid again; {lost} of {} lost at the end; {} logins or \
         logouts answered before their copies were safe",
        ours.dead.len(),
        ours.alive.len(),
        unsettled.unwrap_or("no")
    );
    for story in ours.stories.iter().chain(&town.complaints()) {
        println!("    {story}");
    }
    // What nobody but a dead node ever had cannot be saved.
    let excused =
        ours.lost.iter().filter(|(_, began)| alone.as_ref().is_some_and(|time| time.contains(began)));
    let excused = excused.count();
    if excused > 0 {
        println!("  {excused} of those logged out began while there was neither Redis nor another copy");
    }
    ensure!(ours.wrong_user == 0, "an answer as another user");
    ensure!(risen == 0, "{risen} sessions that were logged out are valid again");
    ensure!(ours.failed_gets == 0, "{} GETs failed", ours.failed_gets);
    ensure!(
        ours.logouts == excused && lost == 0,
        "{} people were logged out, {lost} at the end",
        ours.logouts
    );
    ensure!(ours.requests > people() * 10, "only {} requests", ours.requests);
    Ok(ours)
}

/// A bad night of servers whose clocks agree.
async fn night(
    name: &str,
    profile: u32,
    happens: impl AsyncFnOnce(&mut Town, &mut Recipe) -> Result<Option<Range<Instant>>>,
) -> Result<Notices> {
    night_with_clocks(name, profile, vec![], happens).await
}

/// Sessions that were logged out and that some node takes for somebody's.
async fn risen(town: &Town, notices: &Notices) -> Result<usize> {
    let mut risen = 0;
    for sid in &notices.dead {
        for node in town.stack.nodes.iter().filter(|node| node.process.is_some()) {
            let mut browser = Browser::new(http1(), node.endpoint.http);
            browser.sid = Some(sid.clone());
            risen += usize::from(!browser.get("/odoo").await?.login().is_empty());
        }
    }
    Ok(risen)
}

/// People who are not logged in any more, although they should be.
async fn lost(town: &Town, notices: &Notices) -> Result<usize> {
    let mut lost = 0;
    let connections = http1();
    for (login, sid) in &notices.alive {
        let mut browser = town.stack.browser(&connections);
        browser.sid = Some(sid.clone());
        lost += usize::from(browser.get("/odoo").await?.login() != login);
    }
    Ok(lost)
}

#[tokio::test]
async fn a_node_is_killed_and_comes_back() -> Result<()> {
    for profile in [16, 18, 19] {
        night("kill -9 of a node, back after 3 s", profile, async |town, recipe| {
            town.stack.kill_node("odoo-2");
            drop(recipe.nodes[1].2.take());
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
    night("a host is gone: node and sidecar killed together, back after 3 s", 18, async |town, recipe| {
        drop(town.beside[0].take());
        town.stack.kill_node("odoo-1");
        drop(recipe.nodes[0].2.take());
        sleep(Duration::from_secs(3)).await;
        town.stack.start_node(0).await?;
        town.start_beside(0).await?;
        recipe.start_node(0).await?;
        sleep(Duration::from_secs(4)).await;
        Ok(None)
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_host_freezes() -> Result<()> {
    night("a host freezes for 8 s, node and sidecar", 19, async |town, recipe| {
        let ours = town.stack.nodes[1].process.as_ref().expect("a running node");
        let beside = town.beside[1].as_ref().expect("a running sidecar");
        let theirs = recipe.nodes[1].2.as_ref().expect("a running node");
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
async fn a_sessions_directory_is_emptied() -> Result<()> {
    night("the sessions directory of a node is emptied", 19, async |town, recipe| {
        for sessions in [town.stack.sessions("odoo-3"), recipe.sessions(2)] {
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
    night("all nodes replaced one by one, drained before", 19, async |town, recipe| {
        for place in 0..3 {
            let id = format!("odoo-{}", place + 1);
            let mut drain = Command::new(program("mooring"));
            drain.args(["drain", &id, "--move", "--wait", "--timeout-seconds", "20", "--rate", "500"]);
            drain.args(["--sidecar", &town.stack.sidecar_address.to_string()]);
            let drained = tokio::task::spawn_blocking(move || drain.output()).await??;
            ensure!(drained.status.success(), "{}", String::from_utf8_lossy(&drained.stderr));
            town.stack.kill_node(&id);
            drop(recipe.nodes[place].2.take());
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
    let notices = night("a host is away for 12 s of changes", 19, async |town, recipe| {
        drop(town.beside[1].take());
        town.stack.kill_node("odoo-2");
        drop(recipe.nodes[1].2.take());
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
    night("Redis lost, a node killed, Redis back empty after 4 s, the node too", 18, async |town, recipe| {
        let lost = Instant::now() - Duration::from_millis(200);
        drop(town.redis.take());
        town.stack.kill_node("odoo-1");
        let alone = Some(lost..Instant::now() + Duration::from_millis(200));
        drop(recipe.nodes[0].2.take());
        sleep(Duration::from_secs(4)).await;
        town.start_redis_again().await?;
        town.stack.start_node(0).await?;
        recipe.start_node(0).await?;
        sleep(Duration::from_secs(10)).await;
        Ok(alone)
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn clocks_differ() -> Result<()> {
    let clocks = vec![90, 0, -90];
    night_with_clocks(
        "clocks 90 s apart, a node killed, back after 3 s",
        19,
        clocks,
        async |town, recipe| {
            town.stack.kill_node("odoo-1");
            drop(recipe.nodes[0].2.take());
            sleep(Duration::from_secs(3)).await;
            town.stack.start_node(0).await?;
            recipe.start_node(0).await?;
            sleep(Duration::from_secs(4)).await;
            Ok(None)
        },
    )
    .await?;
    Ok(())
}

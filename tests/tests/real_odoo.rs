//! Mooring in front of two nodes of a real Odoo, on one database.
//!
//! Which node served is known by the session's file: only its own node has it, so who is still logged
//! in was served by that node.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{
    browser::{self, Answer, tally},
    envoy::Bootstrap,
    odoo::{HOST, Odoo, Person, Tree},
    say,
    stack::{Options, Stack},
};
use rustix::process::Signal;
use serde_json::json;

const PEOPLE: usize = 10;
const REQUESTS: usize = 20;

/// Somebody, and the node where they logged in.
struct Guest {
    person: Person,
    home: usize,
}

/// Envoy behind one other proxy. Odoo believes the last address of X-Forwarded-For only, which would be
/// that proxy's: it is told of nobody but the client.
fn behind_a_proxy(bootstrap: &mut Bootstrap) {
    let manager = bootstrap.connection_manager();
    manager["xff_num_trusted_hops"] = 1.into();
    let headers = &mut manager["route_config"]["virtual_hosts"][0]["request_headers_to_add"];
    headers.as_array_mut().expect("headers").push(json!({
        "header": {"key": "x-forwarded-for", "value": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"},
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
    }));
}

#[tokio::test]
async fn two_nodes_of_a_real_odoo() -> Result<()> {
    let Some(tree) = Tree::from_environment()? else {
        say("SKIPPED: MOORING_ODOO names no Odoo");
        return Ok(());
    };
    let mut odoo = Odoo::install(tree, 2).await?;
    // Their places are free: no stand-in runs.
    let options = Options { nodes: 2, running: 0, ..Options::default() };
    let mut stack = Stack::start_with(options, behind_a_proxy).await?;
    for place in 0..2 {
        start(&mut odoo, &stack, place).await?;
    }

    let mut guests = log_in(&odoo, &stack).await?;
    for guest in &mut guests {
        stays(&odoo, guest, REQUESTS).await?;
    }
    say(&format!("real Odoo: {PEOPLE} people, {REQUESTS} requests each: none moved, none was logged out"));

    odoo_is_told_who_came(&odoo, &mut guests).await?;
    websockets(&odoo, &stack, &mut guests).await?;

    let sidecar = stack.sidecar.take().context("a sidecar")?;
    ensure!(sidecar.terminate()?.success());
    for guest in &mut guests {
        stays(&odoo, guest, 2).await?;
    }
    stack.start_sidecar().await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    for guest in &mut guests {
        stays(&odoo, guest, 4).await?;
    }
    say("real Odoo: sidecar away and back: nobody moved");

    guests = without(&mut odoo, &stack, guests, 0, Signal::TERM).await?;
    guests = without(&mut odoo, &stack, guests, 1, Signal::KILL).await?;
    ensure!(guests.len() == PEOPLE);

    // With their sessions carried.
    stack.sidecar.take().context("a sidecar")?.terminate()?;
    for place in 0..2 {
        let sessions = format!("{}={}", stack.nodes[place].id, odoo.sessions(place).display());
        stack.add_sidecar_args(&["--sessions", &sessions]);
    }
    stack.start_sidecar().await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    for guest in &mut guests {
        let holders = odoo.holders(guest.person.sid());
        ensure!(holders == [0, 1], "the session that was there before is on {holders:?}");
        stays(&odoo, guest, 2).await?;
    }
    say("real Odoo: sessions that were there are carried, and nobody logged in again");
    if odoo.version() >= 19 {
        old_sessions(&odoo, &mut guests).await?;
    }
    nobody_is_logged_out(&mut odoo, &stack, guests).await
}

/// A node is killed; its people go on at the other one, at once and as themselves. Who logs out is out
/// everywhere, also after the node is back.
async fn nobody_is_logged_out(odoo: &mut Odoo, stack: &Stack, mut guests: Vec<Guest>) -> Result<()> {
    let late = {
        let mut person = Person::new(&browser::http1(), stack.address, "203.0.113.99".to_owned());
        person.log_in().await?;
        person
    };
    let gone = guests[0].home;
    let home = guests.iter().position(|guest| guest.home != gone).context("nobody on the other node")?;
    guests.swap(1, home);
    odoo.stop(gone, Signal::KILL).await?;
    let mut late = late;
    for person in [&mut late].into_iter().chain(guests.iter_mut().map(|guest| &mut guest.person)) {
        let sid = person.sid().to_owned();
        let answer = person.get(odoo.page()).await?;
        ensure!(answer.status == 200, "{} got {}", person.address, answer.status);
        ensure!(person.session_info().await?["uid"].is_u64(), "{} is logged out", person.address);
        ensure!(person.sid() == sid, "{} has another session", person.address);
    }
    say(&format!(
        "real Odoo: {} was killed: all {PEOPLE} people and one who just came went on",
        stack.nodes[gone].id
    ));

    let mut leaver = guests.swap_remove(0).person;
    let sid = leaver.sid().to_owned();
    leaver.get("/web/session/logout").await?;
    ensure!(leaver.sid() != sid, "the logout changed nothing");
    start(odoo, stack, gone).await?;
    stack.wait_until_healthy(2).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure!(odoo.holders(&sid).is_empty(), "who logged out is still on {:?}", odoo.holders(&sid));
    for guest in &mut guests {
        ensure!(guest.person.get(odoo.page()).await?.status == 200, "{} is logged out", guest.person.address);
    }
    say("real Odoo: the node is back: who logged out is out, the others are in");
    Ok(())
}

/// Odoo 19 gives a session that is some hours old another id, of which the first half stays. Nobody else notices.
async fn old_sessions(odoo: &Odoo, guests: &mut [Guest]) -> Result<()> {
    for guest in guests.iter_mut() {
        let old = guest.person.sid().to_owned();
        odoo.age(guest.home, &old, Duration::from_secs(4 * 3600))?;
        let answer = guest.person.get(odoo.page()).await?;
        ensure!(answer.status == 200, "{} got {}", guest.person.address, answer.status);
        let new = guest.person.sid();
        ensure!(
            new != old && new.get(..42) == old.get(..42),
            "{} has the same session",
            guest.person.address
        );
        stays(odoo, guest, 4).await?;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    for guest in guests.iter() {
        let holders = odoo.holders(guest.person.sid());
        ensure!(holders == [0, 1], "a session with another id is on {holders:?}");
    }
    say("real Odoo: old sessions got other ids, and nobody moved");
    Ok(())
}

async fn start(odoo: &mut Odoo, stack: &Stack, place: usize) -> Result<()> {
    let node = &stack.nodes[place];
    odoo.start(place, node.endpoint).await?;
    stack.wait_for_state(&node.id, "active").await?;
    while stack.envoy.stat("cluster.odoo.membership_healthy").await? < 1 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// The session cookies of an answer, without what makes them valid.
fn cookies(answer: &Answer) -> Vec<String> {
    let cookies = answer.headers.get_all("set-cookie").iter();
    let cookies = cookies.filter_map(|cookie| cookie.to_str().ok()?.strip_prefix("session_id="));
    let masked = cookies.map(|cookie| match cookie.split_once(';') {
        Some((sid, rest)) => format!("session_id=<{} characters>;{rest}", sid.len()),
        None => cookie.len().to_string(),
    });
    masked.collect()
}

/// Everybody logs in, from an address of their own.
async fn log_in(odoo: &Odoo, stack: &Stack) -> Result<Vec<Guest>> {
    let http = browser::http1();
    let mut guests = Vec::new();
    for number in 0..PEOPLE {
        let mut person = Person::new(&http, stack.address, format!("203.0.113.{number}"));
        let page = person.get("/web/login").await?;
        let visitor = person.sid().to_owned();
        ensure!(odoo.holders(&visitor).is_empty(), "an anonymous session has a file");
        let login = person.log_in().await?;
        let characters = if odoo.version() < 18 { 40 } else { 84 };
        ensure!(person.sid() != visitor && person.sid().len() == characters, "{}", person.sid().len());
        for (what, answer) in [("the login page", page), ("the login", login)] {
            let cookies = cookies(&answer);
            ensure!(cookies.len() == 1 && cookies[0].ends_with("HttpOnly; Path=/"), "{what}: {cookies:?}");
            if number == 0 {
                say(&format!("real Odoo: {what} sets {}", cookies[0]));
            }
        }
        let holders = odoo.holders(person.sid());
        ensure!(holders.len() == 1, "the session's file is on {holders:?}");
        guests.push(Guest { person, home: holders[0] });
    }
    let homes = tally(guests.iter().map(|guest| guest.home));
    say(&format!("real Odoo: people logged in on each node: {homes:?}"));
    ensure!(homes.len() == 2, "a node has nobody: {homes:?}");
    Ok(guests)
}

/// Lets somebody work: always logged in, with the same session, whose file is on their node only.
async fn stays(odoo: &Odoo, guest: &mut Guest, requests: usize) -> Result<()> {
    let sid = guest.person.sid().to_owned();
    for number in 0..requests {
        if number % 2 == 0 {
            let answer = guest.person.get(odoo.page()).await?;
            let to = answer.header("location");
            ensure!(answer.status == 200, "{} got {} {to}", guest.person.address, answer.status);
        } else {
            let info = guest.person.session_info().await?;
            ensure!(info["uid"].is_u64(), "{} is not logged in: {info}", guest.person.address);
        }
        ensure!(guest.person.sid() == sid, "{} has another session", guest.person.address);
        let session = odoo.session(guest.home, &sid).context("the session's file is gone")?;
        ensure!(session["uid"].is_u64(), "the session is anonymous: {session}");
    }
    Ok(())
}

/// Odoo knows the address, host and scheme that people came with.
async fn odoo_is_told_who_came(odoo: &Odoo, guests: &mut [Guest]) -> Result<()> {
    // Older sessions do not say it.
    for guest in guests.iter_mut().filter(|_| odoo.version() >= 18) {
        let session = odoo.session(guest.home, guest.person.sid()).context("no session")?;
        let seen = session["_trace"][0]["ip_address"].as_str().unwrap_or_default().to_owned();
        ensure!(seen == guest.person.address, "Odoo takes {} for {seen}", guest.person.address);
    }
    let info = guests[0].person.session_info().await?;
    ensure!(info["web.base.url"] == format!("https://{HOST}"), "{}", info["web.base.url"]);
    say(&format!("real Odoo: it knows everybody's address, and that they came to https://{HOST}"));
    Ok(())
}

/// A websocket goes to the node of its session; on another it would begin an anonymous one.
async fn websockets(odoo: &Odoo, stack: &Stack, guests: &mut [Guest]) -> Result<()> {
    let mut open = Vec::new();
    for guest in guests.iter_mut() {
        let socket = guest.person.websocket(None).await?;
        open.push(socket);
        let holders = odoo.holders(guest.person.sid());
        ensure!(holders == [guest.home], "{} is on {holders:?}", guest.person.address);
        stays(odoo, guest, 2).await?;
    }
    say(&format!("real Odoo: {} websockets, each on the node of its session", open.len()));
    // What would be seen had it gone to the other node.
    let http = browser::http1();
    let mut stray = Person::new(&http, stack.address, "198.51.100.1".to_owned());
    stray.log_in().await?;
    let home = odoo.holders(stray.sid())[0];
    let elsewhere = 1 - home;
    stray.websocket(Some(stack.nodes[elsewhere].endpoint.gevent)).await?;
    let left = odoo.session(elsewhere, stray.sid()).context("nothing is left of a websocket elsewhere")?;
    ensure!(left["uid"].is_null(), "{left}");
    Ok(())
}

/// Everybody works until told to stop; returns them with the answers that they got.
fn work(
    odoo: &Odoo,
    guests: Vec<Guest>,
    stop: &Arc<AtomicBool>,
) -> Vec<tokio::task::JoinHandle<(Guest, Vec<u16>)>> {
    let page = odoo.page();
    let work = |mut guest: Guest| {
        let stop = Arc::clone(stop);
        tokio::spawn(async move {
            let mut answers = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                answers.push(guest.person.get(page).await.map_or(0, |answer| answer.status));
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            (guest, answers)
        })
    };
    guests.into_iter().map(work).collect()
}

/// A node ends while everybody works, and comes back.
async fn without(
    odoo: &mut Odoo,
    stack: &Stack,
    guests: Vec<Guest>,
    gone: usize,
    farewell: Signal,
) -> Result<Vec<Guest>> {
    let node = &stack.nodes[gone];
    let stop = Arc::new(AtomicBool::new(false));
    let workers = work(odoo, guests, &stop);
    tokio::time::sleep(Duration::from_millis(500)).await;
    odoo.stop(gone, farewell).await?;
    stack.wait_for_state(&node.id, "down").await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(true, Ordering::Relaxed);
    let (mut guests, mut its_own, mut others) = (Vec::new(), Vec::new(), Vec::new());
    for worker in workers {
        let (guest, answers) = worker.await?;
        if guest.home == gone {
            its_own.extend(answers)
        } else {
            others.extend(answers)
        }
        guests.push(guest);
    }
    let (its_own, others) = (tally(its_own), tally(others));
    let how = if farewell == Signal::KILL { "killed" } else { "stopped" };
    say(&format!("real Odoo: {} was {how}: its people got {its_own:?}, others {others:?}", node.id));

    for guest in guests.iter_mut().filter(|guest| guest.home == gone) {
        // As a browser goes on: to the login page, and to the bus.
        let sid = guest.person.sid().to_owned();
        let answer = guest.person.get(odoo.page()).await?;
        ensure!(answer.status == 303, "{} got {}", guest.person.address, answer.status);
        // Up to 17 it begins with scheme and host.
        let (location, origin) = (answer.header("location"), format!("https://{HOST}"));
        let page = guest.person.get(location.strip_prefix(&origin).unwrap_or(location)).await?;
        ensure!(page.status == 200, "the login page got {}", page.status);
        ensure!(guest.person.session_info().await?.is_null(), "another node knows the session");
        ensure!(odoo.holders(&sid) == [gone], "these have the session: {:?}", odoo.holders(&sid));
        // This begins an anonymous session under the same id: it must not win over the real one.
        guest.person.websocket(None).await?;
        ensure!(odoo.holders(&sid) == [0, 1], "these have the session: {:?}", odoo.holders(&sid));
        ensure!(guest.person.sid() == sid, "{} lost their session", guest.person.address);
    }
    ensure!(its_own.keys().all(|status| [200, 303].contains(status)), "its people got {its_own:?}");
    ensure!(others.keys().all(|status| *status == 200), "others got {others:?}");

    start(odoo, stack, gone).await?;
    stack.wait_until_healthy(2).await?;
    for guest in &mut guests {
        stays(odoo, guest, 4).await?;
    }
    say(&format!("real Odoo: {} is back: its people are still logged in", node.id));
    Ok(guests)
}

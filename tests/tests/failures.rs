//! Servers and sidecars go away and come back.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, ensure};
use harness::{
    browser::{self, Browser, Method},
    stack::{Options, Stack},
};

/// A browser that is logged in, and where.
struct Person {
    browser: Browser,
    login: String,
    node: String,
}

async fn people(stack: &Stack, count: usize) -> Result<Vec<Person>> {
    let http = browser::http1();
    let mut people = Vec::new();
    for number in 0..count {
        let mut browser = stack.browser(&http);
        browser.sid = Some(browser::random_sid());
        let login = format!("user{number}");
        let node = browser.log_in(&login).await?.node().to_owned();
        people.push(Person { browser, login, node });
    }
    Ok(people)
}

/// How often people were answered by another node or as somebody else, and requests that failed.
#[derive(Default)]
struct Tally {
    requests: AtomicUsize,
    moved: AtomicUsize,
    failed: AtomicUsize,
    logins: AtomicUsize,
    /// What failed, to be told.
    failures: Mutex<Vec<String>>,
}

impl Tally {
    fn fail(&self, what: String) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        self.failures.lock().unwrap().push(what);
    }
}

/// Lets everybody work until told to stop; also new people log in all the time.
fn work(
    people: Vec<Person>,
    stop: &Arc<AtomicBool>,
    tally: &Arc<Tally>,
) -> Vec<tokio::task::JoinHandle<Person>> {
    let work = |mut person: Person| {
        let (stop, tally) = (Arc::clone(stop), Arc::clone(tally));
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                match person.browser.get("/odoo").await {
                    Ok(answer) if answer.status == 200 => {
                        let there = answer.node() == person.node && answer.login() == person.login;
                        tally.moved.fetch_add(usize::from(!there), Ordering::Relaxed);
                    }
                    Ok(answer) => tally.fail(format!(
                        "{} of {} got {} from {:?}: {}",
                        person.login,
                        person.node,
                        answer.status,
                        answer.node(),
                        answer.text().chars().take(120).collect::<String>()
                    )),
                    Err(error) => tally.fail(format!("{}: {error:#}", person.login)),
                }
                tally.requests.fetch_add(1, Ordering::Relaxed);
                if tally.requests.load(Ordering::Relaxed) % 29 == 0 {
                    // The same person logs in anew: a new session, wherever they are.
                    person.browser.sid = Some(browser::random_sid());
                    match person.browser.log_in(&person.login).await {
                        Ok(answer) => person.node = answer.node().to_owned(),
                        Err(error) => tally.fail(format!("login of {}: {error:#}", person.login)),
                    }
                    tally.logins.fetch_add(1, Ordering::Relaxed);
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            person
        })
    };
    people.into_iter().map(work).collect()
}

/// The node that is next in line for a session, as everybody computes it.
fn standby(stack: &Stack, sid: &str, owner: &str) -> String {
    let node = |node: &harness::node::Node| affinity::Node {
        id: affinity::NodeId::new(&*node.id).unwrap(),
        http: node.endpoint.http,
        gevent: None,
        weight: 1,
        state: affinity::NodeState::Active,
        full: false,
        carries: false,
    };
    let members = affinity::Membership::new(stack.nodes.iter().map(node).collect()).unwrap();
    let owner = affinity::NodeId::new(owner).unwrap().seed();
    let key = affinity::SessionKey::of_session_id(sid.as_bytes());
    let places = affinity::plan::plan(&members, key, Some(owner)).places;
    members.nodes()[places[1]].id.to_string()
}

#[tokio::test]
async fn a_removed_node_moves_only_its_own_browsers() -> Result<()> {
    let mut stack = Stack::start(Options::default()).await?;
    let mut people = people(&stack, 90).await?;
    stack.kill_node("odoo-2");
    // At once, before any health check: refused connections are tried on the standby.
    let mut moved = 0;
    for person in &mut people {
        let answer = person.browser.get("/web/static/x.css").await?;
        ensure!(answer.status == 200, "{} got {}", person.login, answer.status);
        if person.node == "odoo-2" {
            let standby = standby(&stack, person.browser.sid.as_deref().unwrap_or_default(), "odoo-2");
            ensure!(answer.node() == standby, "{} is not the standby {standby}", answer.node());
            moved += 1;
        } else {
            ensure!(answer.node() == person.node, "{} moved from {}", person.login, person.node);
        }
    }
    println!("odoo-2 is gone: {moved} of {} browsers moved, all of them its own", people.len());
    stack.wait_for_state("odoo-2", "down").await?;
    for person in people.iter_mut().filter(|person| person.node != "odoo-2") {
        let answer = person.browser.get("/odoo").await?;
        ensure!(answer.node() == person.node && answer.login() == person.login, "{} moved", person.login);
    }
    // It comes back with its sessions, and its people return to them.
    stack.start_node(1).await?;
    stack.wait_for_state("odoo-2", "active").await?;
    stack.wait_until_healthy(3).await?;
    for person in &mut people {
        let answer = person.browser.get("/odoo").await?;
        ensure!(
            answer.node() == person.node && answer.login() == person.login,
            "{} is elsewhere",
            person.login
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_sidecar_restarted_under_load_moves_nobody() -> Result<()> {
    let mut stack = Stack::start(Options::default()).await?;
    let people = people(&stack, 40).await?;
    let (stop, tally) = (Arc::new(AtomicBool::new(false)), Arc::new(Tally::default()));
    let workers = work(people, &stop, &tally);
    for round in 0..4 {
        tokio::time::sleep(Duration::from_millis(1_000)).await;
        let sidecar = stack.sidecar.take().expect("a sidecar");
        if round % 2 == 0 {
            let status = sidecar.terminate()?;
            ensure!(status.success(), "the sidecar ended with {status}");
        } else {
            sidecar.kill();
        }
        // People log in while it is away.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        stack.start_sidecar().await?;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    stop.store(true, Ordering::Relaxed);
    let mut people = Vec::new();
    for worker in workers {
        people.push(worker.await?);
    }
    report("sidecar restarted four times", &tally)?;
    for person in &mut people {
        let answer = person.browser.get("/odoo").await?;
        ensure!(answer.node() == person.node && answer.login() == person.login, "{} moved", person.login);
    }
    Ok(())
}

#[tokio::test]
async fn a_killed_sidecar_costs_nothing_but_new_knowledge() -> Result<()> {
    let mut stack = Stack::start(Options::default()).await?;
    let people = people(&stack, 40).await?;
    let (stop, tally) = (Arc::new(AtomicBool::new(false)), Arc::new(Tally::default()));
    let workers = work(people, &stop, &tally);
    tokio::time::sleep(Duration::from_millis(500)).await;
    stack.sidecar.take().expect("a sidecar").kill();
    tokio::time::sleep(Duration::from_secs(4)).await;
    stop.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.await?;
    }
    report("sidecar killed", &tally)
}

fn report(what: &str, tally: &Tally) -> Result<()> {
    let [requests, moved, failed, logins] = [&tally.requests, &tally.moved, &tally.failed, &tally.logins]
        .map(|counter| counter.load(Ordering::Relaxed));
    for failure in tally.failures.lock().unwrap().iter().take(12) {
        println!("  {failure}");
    }
    println!("{what}: {requests} requests, {logins} logins, {moved} moved, {failed} failed");
    ensure!(requests > 500 && logins > 10, "there was no load");
    ensure!(moved == 0 && failed == 0, "{moved} moved, {failed} failed of {requests}");
    Ok(())
}

#[tokio::test]
async fn a_request_that_may_have_run_is_not_replayed() -> Result<()> {
    let mut stack = Stack::start(Options::default()).await?;
    let mut people = people(&stack, 30).await?;
    let on_first = people.iter_mut().find(|person| person.node == "odoo-1").expect("somebody on odoo-1");
    // The node dies while it works on a POST: an error, and nobody else runs it.
    let mut browser = on_first.browser.clone();
    let post = tokio::spawn(async move {
        browser.request(Method::POST, "/report/slow?ms=3000", &[], "make it so").await
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    stack.kill_node("odoo-1");
    let answer = post.await??;
    ensure!(answer.status == 503 || answer.status == 502, "the POST got {}", answer.status);
    let mut posts = 0;
    for node in stack.nodes.iter().filter(|node| node.process.is_some()) {
        let state = browser::get(node.endpoint.http, "/standin/state").await?.text();
        posts += usize::from(state.contains("/report/slow"));
    }
    ensure!(posts == 0, "the POST ran again on {posts} nodes");

    // The same with a GET: reading twice harms nobody.
    let on_second = people.iter_mut().find(|person| person.node == "odoo-2").expect("somebody on odoo-2");
    let mut browser = on_second.browser.clone();
    let get = tokio::spawn(async move { browser.get("/report/slow?ms=1000").await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    stack.kill_node("odoo-2");
    let answer = get.await??;
    ensure!(
        answer.status == 200 && answer.node() == "odoo-3",
        "the GET got {} from {}",
        answer.status,
        answer.node()
    );

    // A POST whose connection is refused did not run, and is tried on the standby.
    let on_second = people.iter_mut().find(|person| person.node == "odoo-2").expect("somebody on odoo-2");
    let answer = on_second.browser.request(Method::POST, "/web/upload", &[], "0123456789").await?;
    ensure!(answer.status == 200 && answer.node() == "odoo-3", "the POST got {}", answer.status);
    Ok(())
}

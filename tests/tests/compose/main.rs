//! The docker compose stack really runs: with stand-ins for Odoo, and images made of what is here.

mod engine;
mod images;
mod same;
mod schema;
mod secrets;

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{
    browser::{Browser, http1},
    person::Person,
    say, target,
};

use self::engine::Engine;

const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until something holds.
async fn wait(what: &str, mut holds: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !holds().await? {
        ensure!(began.elapsed() < PATIENCE, "it does not come about that {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// A value of the stack's `.env`.
fn setting(name: &str) -> Result<String> {
    let text = fs::read_to_string(harness::root().join("envoy/compose/.env"))?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    value.map(str::to_owned).with_context(|| format!(".env has no {name}"))
}

/// The stand-in's service in place of a node's.
fn service(node: &str) -> String {
    node.replace("odoo", "standin")
}

/// Somebody's next request is served by another node, logged in; returns where they were.
async fn goes_on_elsewhere(person: &mut Person) -> Result<String> {
    let answer = person.browser.get("/odoo").await?;
    let is_elsewhere = answer.login() == person.login && answer.node() != person.node;
    ensure!(is_elsewhere, "{} as {:?}", answer.node(), answer.login());
    Ok(std::mem::replace(&mut person.node, answer.node().to_owned()))
}

#[tokio::test]
async fn the_story_of_the_stack() -> Result<()> {
    let engine = match Engine::start().await {
        Ok(engine) => engine,
        Err(problem) => {
            say(&format!("SKIPPED: the compose stack: no Docker engine runs here: {problem:#}"));
            return Ok(());
        }
    };
    for name in ["mooring", "odoo-standin"] {
        engine.load(&target().join(format!("images/{name}.tar")))?;
    }
    engine.import(&images::redis(&format!("redis:{}", setting("REDIS_VERSION")?))?)?;
    engine.import(&images::envoy(&format!("envoyproxy/envoy:{}", setting("ENVOY_VERSION")?))?)?;
    println!("{}", engine.docker(&["images", "--format", "table {{.Repository}}\t{{.Tag}}\t{{.Size}}"])?);

    let began = Instant::now();
    engine.compose(&["--profile", "demo", "up", "-d"])?;
    let connections = http1();
    let address = engine.published(setting("PORT")?.parse()?);
    let visitor = || Browser::new(connections.clone(), address);
    wait("all nodes are active", async || {
        let nodes = engine.compose(&["exec", "-T", "mooring", "mooring", "nodes", "--json"]);
        Ok(nodes.is_ok_and(|nodes| nodes.matches("\"active\"").count() == 3))
    })
    .await?;
    wait("the stack answers", async || {
        Ok(visitor().get("/web/login").await.is_ok_and(|it| it.status == 200))
    })
    .await?;
    // The filter hears of the nodes a moment after Envoy answers.
    wait("a session sticks", async || match Person::log_in(visitor(), "early".into()).await {
        Ok(mut early) => Ok(early.works().await.is_ok()),
        Err(_) => Ok(false),
    })
    .await?;
    println!("the stack was up after {:.1?}", began.elapsed());

    let mut alice = Person::log_in(visitor(), "alice".into()).await?;
    alice.works().await?;
    let sid = alice.browser.sid.clone().context("a session")?;
    println!("alice is on {}", alice.node);

    engine.compose(&["--profile", "demo", "kill", &service(&alice.node)])?;
    let killed = goes_on_elsewhere(&mut alice).await?;
    println!("{killed} was killed; she goes on at {}", alice.node);
    alice.works().await?;

    engine.compose(&["--profile", "demo", "start", &service(&killed)])?;
    wait("the node is back", async || {
        Ok(engine
            .compose(&["exec", "-T", "mooring", "mooring", "nodes", "--json"])?
            .matches("\"active\"")
            .count()
            == 3)
    })
    .await?;
    alice.works().await?;

    let drained =
        engine.compose(&["exec", "-T", "mooring", "mooring", "drain", &alice.node, "--move", "--wait"])?;
    println!("{}", drained.trim());
    let drained = goes_on_elsewhere(&mut alice).await?;
    engine.compose(&["--profile", "demo", "restart", &service(&drained)])?;
    engine.compose(&["exec", "-T", "mooring", "mooring", "undrain", &drained])?;
    alice.works().await?;

    let mut secrets = vec![sid];
    for (volume, name) in [("mooring", "secret"), ("redis", "password"), ("postgres", "password")] {
        let secret = fs::read_to_string(engine.volume(&format!("{volume}-secrets")).join(name))?;
        ensure!(secret.len() == 64, "{name} has {} characters", secret.len());
        secrets.push(secret);
    }
    let logs = engine.compose(&["--profile", "demo", "logs", "--no-color"])?;
    ensure!(logs.contains("listening on") && !logs.contains("\u{1b}[32m"), "{logs}");
    let ids = engine.docker(&["ps", "--all", "--quiet"])?;
    let ids: Vec<&str> = ids.split_whitespace().collect();
    let containers = engine.docker(&[&["inspect"], ids.as_slice()].concat())?;
    for (what, text) in
        [("a log", logs), ("a container", containers), ("the list of processes", processes()?)]
    {
        ensure!(!secrets.iter().any(|secret| text.contains(secret.as_str())), "a secret is in {what}");
    }
    let of_odoo: Result<Vec<_>, _> = fs::read_dir(engine.volume("odoo-secrets"))?.collect();
    let of_odoo: Vec<_> = of_odoo?.into_iter().map(|entry| entry.file_name()).collect();
    ensure!(of_odoo == ["pgpass"], "Odoo sees {of_odoo:?}");
    engine.compose(&["--profile", "demo", "down", "--volumes"])?;
    Ok(())
}

/// What every process of this machine was started with, and its environment.
fn processes() -> Result<String> {
    let mut text = String::new();
    for entry in fs::read_dir("/proc")?.flatten().filter(|entry| entry.path().join("cmdline").exists()) {
        for file in ["cmdline", "environ"] {
            // Some end meanwhile.
            text += &String::from_utf8_lossy(&fs::read(entry.path().join(file)).unwrap_or_default());
        }
    }
    ensure!(text.contains("redis-server"), "not even Redis is found");
    Ok(text)
}

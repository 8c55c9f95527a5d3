//! The directory in Redis: sidecars come and go, and Redis too.

use std::{
    net::SocketAddr,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{
    browser,
    crowd::Crowd,
    person::Person,
    process::{Process, free_port},
    stack::{Options, Stack},
    tools,
};

const BROWSERS: usize = 30;

/// A Redis that remembers what it was told, also when it is killed.
async fn start_redis(folder: &Path, address: SocketAddr) -> Result<Process> {
    let mut command = Command::new(tools::redis_server()?);
    command.args(["--bind", "127.0.0.1", "--port", &address.port().to_string()]);
    command.args(["--save", "", "--appendonly", "yes", "--appendfsync", "always"]);
    command.arg("--dir").arg(folder);
    let mut process = Process::start("redis-server", command, &folder.join("redis.log"))?;
    process
        .wait(Duration::from_secs(10), async || tokio::net::TcpStream::connect(address).await.ok())
        .await?;
    Ok(process)
}

/// Somebody whose first session has a home that chance chose.
async fn person(stack: &Stack, login: String) -> Result<Person> {
    let mut browser = stack.browser(&browser::http1());
    browser.sid = Some(browser::random_sid());
    Person::log_in(browser, login).await
}

/// A stack on Redis with people logged in. Their sessions began where chance led, so that for most of
/// them only a record in Redis says that they do not belong at home.
async fn stack_with_people(redis: SocketAddr) -> Result<(Stack, Vec<Person>)> {
    let store = format!("redis://{redis}/0");
    let sidecar_args = ["--probe-interval-ms", "200", "--store", &store].map(str::to_owned).to_vec();
    // One thread of Envoy, so that whoever is remembered is remembered for all.
    let stack = Stack::start(Options { sidecar_args, concurrency: 1, ..Options::default() }).await?;
    let mut people = Vec::new();
    for number in 0..BROWSERS {
        people.push(person(&stack, format!("user{number}")).await?);
    }
    everybody_works(&mut people).await?;
    Ok((stack, people))
}

async fn everybody_works(people: &mut [Person]) -> Result<()> {
    for person in people {
        person.works().await?;
    }
    Ok(())
}

async fn restart_sidecar(stack: &mut Stack) -> Result<()> {
    let status = stack.sidecar.take().context("no sidecar")?.terminate()?;
    ensure!(status.success(), "the sidecar ended with {status}");
    stack.start_sidecar().await
}

#[tokio::test]
async fn a_restarted_sidecar_finds_everybody_in_redis() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let redis = ([127, 0, 0, 1], free_port()?).into();
    let _redis = start_redis(folder.path(), redis).await?;
    let (mut stack, mut people) = stack_with_people(redis).await?;
    for _ in 0..2 {
        restart_sidecar(&mut stack).await?;
        everybody_works(&mut people).await?;
        // Envoy has heard of the restart by now, and asks for everybody anew.
        tokio::time::sleep(Duration::from_millis(1_000)).await;
        everybody_works(&mut people).await?;
    }
    let metrics = browser::get(stack.sidecar_address, "/metrics").await?.text();
    let owned: usize = ["Owned", "Cached"]
        .iter()
        .filter_map(|result| {
            let name = format!("mooring_owner_lookups_total{{result=\"{result}\"}} ");
            metrics.lines().find_map(|line| line.strip_prefix(&name))?.parse::<usize>().ok()
        })
        .sum();
    ensure!(owned >= people.len(), "only {owned} owners were read back:\n{metrics}");
    ensure!(!stack.folder().join("state").exists(), "something was kept beside Redis");
    Ok(())
}

#[tokio::test]
async fn redis_killed_under_load_costs_no_request_and_moves_nobody() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let address = ([127, 0, 0, 1], free_port()?).into();
    let redis = start_redis(folder.path(), address).await?;
    let (mut stack, people) = stack_with_people(address).await?;
    let crowd = Crowd::start(people, Duration::from_millis(50));
    tokio::time::sleep(Duration::from_millis(500)).await;

    redis.kill();
    let before = crowd.requests();
    // New people too: they are at home, where nobody needs to be asked.
    let mut people = Vec::new();
    for number in 0..5 {
        let mut person = person(&stack, format!("late{number}")).await?;
        person.works().await?;
        people.push(person);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let ready = browser::get(stack.sidecar_address, "/readyz").await?;
    ensure!(ready.status == 503 && ready.text().contains("the store cannot be reached"), "{ready:?}");
    let without = crowd.requests() - before;
    ensure!(without > 500, "only {without} requests while Redis was away");

    let _redis = start_redis(folder.path(), address).await?;
    let started = Instant::now();
    while browser::get(stack.sidecar_address, "/readyz").await?.status != 200 {
        ensure!(started.elapsed() < Duration::from_secs(10), "the sidecar does not find Redis again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let all = crowd.requests();
    people.extend(crowd.stop().await?);
    println!("Redis killed and back: {all} requests, {without} of them without it; none failed or moved");

    // It is used again: who logs in now is found by a sidecar that knows nothing but Redis.
    let claims = async || -> Result<u64> { stack.envoy.stat("wasmcustom.mooring_claim_failures").await };
    let failures = claims().await?;
    for number in 0..5 {
        people.push(person(&stack, format!("again{number}")).await?);
    }
    ensure!(claims().await? == failures, "claims fail");
    restart_sidecar(&mut stack).await?;
    tokio::time::sleep(Duration::from_millis(1_000)).await;
    everybody_works(&mut people).await
}

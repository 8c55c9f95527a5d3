//! Mixed attacks on every port, beside people at work: none of them notices.

mod api;
mod attackers;
mod connections;
mod cookies;
mod door;
mod footprint;
mod frames;
mod headers;
mod http2;
mod own;
mod watch;

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use harness::{
    browser::http1,
    envoy::Bootstrap,
    process::wait_until,
    say,
    stack::{Options, Stack},
    witnesses::{Habits, Notices, Witnesses, Wrong, at, lost, risen},
};
use serde_json::json;
use tokio::time::sleep;

use crate::{
    attackers::{Attackers, Target},
    door::Door,
    footprint::{Footprint, limit_descriptors, unlimit_descriptors_of},
    frames::Worker,
    watch::{Seen, Watch},
};

const PEOPLE: usize = 60;
const WARM_UP: Duration = Duration::from_secs(2);
/// What systemd lets a service have that does not ask for more.
const SERVICE_DESCRIPTORS: u64 = 1_024;
/// Connections on which nothing is said, on all ports together.
const IDLE: usize = 3_000;
/// How many times the memory of peace an attack may take.
const MOST_GROWTH: u64 = 6;
/// What the test needs for all of its connections.
const NEEDED: u64 = 6_000;

/// Three servers whose sessions are carried, as the packages set them up: no token, and a sidecar with as few
/// descriptors as services get.
async fn start(folder: &Path) -> Result<Stack> {
    let [local, cache] = ["mooring.sock", "cache.sock"].map(|name| folder.join(name).display().to_string());
    // A machine that has much to do is no reason to call a server down.
    let sidecar_args =
        ["--listen", &format!("unix:{local}"), "--cache-socket", &cache, "--probe-timeout-ms", "30000"];
    limit_descriptors(Some(SERVICE_DESCRIPTORS))?;
    let options = Options {
        carry: true,
        // As in Odoo the grace is over, and has been cleaned up after, long before the next rotation.
        standin_args: ["--rotation-secs", "8", "--rotation-grace-secs", "4"].map(str::to_owned).to_vec(),
        sidecar_args: sidecar_args.map(str::to_owned).to_vec(),
        ..Options::default()
    };
    let patient = |bootstrap: &mut Bootstrap| {
        for cluster in ["odoo", "odoo_gevent"] {
            bootstrap.cluster(cluster)["health_checks"][0]["timeout"] = json!("30s");
        }
    };
    let stack = Stack::start_with(options, patient).await?;
    // Envoy's unit asks for many; how many Odoo has is not Mooring's business.
    unlimit_descriptors_of(&stack.envoy.process)?;
    for node in stack.nodes.iter().filter_map(|node| node.process.as_ref()) {
        unlimit_descriptors_of(node)?;
    }
    Ok(stack)
}

fn attack(target: Arc<Target>, idle: usize) -> Attackers {
    let mut attackers = Attackers::new(Arc::clone(&target));
    let all = &mut attackers;
    let Target { envoy, admin, sidecar, local, cache, .. } = &*target;
    let share = |of_3000: usize| (idle * of_3000).div_ceil(IDLE);

    for (name, door, of_3000) in [
        ("idle connections to Envoy", envoy, 1_450),
        ("idle connections to Envoy's admin port", admin, 100),
        ("idle connections to the sidecar's port", sidecar, 900),
        ("idle connections to the sidecar's socket", local, 300),
        ("idle connections to the cache's socket", cache, 250),
    ] {
        all.begin(name, door, share(of_3000), connections::idle);
    }
    for (names, door) in [
        (["slow headers at Envoy", "junk at Envoy", "TLS at Envoy", "half-closed at Envoy"], envoy),
        (["slow headers at admin", "junk at admin", "TLS at admin", "half-closed at admin"], admin),
        (
            ["slow headers at the sidecar", "junk at the sidecar", "TLS at the sidecar", "half-closed at it"],
            sidecar,
        ),
        (
            [
                "slow headers at its socket",
                "junk at its socket",
                "TLS at its socket",
                "half-closed at its socket",
            ],
            local,
        ),
    ] {
        all.begin(names[0], door, 60, connections::slow_headers);
        all.begin(names[1], door, 3, connections::junk);
        all.begin(names[2], door, 2, connections::tls_hello);
        all.begin(names[3], door, 2, connections::half_closed);
    }
    all.begin("bodies announced to Odoo", envoy, 60, |it| connections::unsent_body(it, "/web/login"));
    all.begin("bodies without an end to Odoo", envoy, 60, |it| connections::endless_body(it, "/web/upload"));
    all.begin("bodies announced to the sidecar", sidecar, 60, |it| {
        connections::unsent_body(it, "/v1/claims")
    });
    all.begin("bodies without an end to it", sidecar, 20, |it| connections::endless_body(it, "/v1/claims"));
    all.begin("silent websockets", envoy, 60, connections::silent_websocket);
    all.begin("hasty websockets", envoy, 1, connections::hasty_websocket);
    all.begin("pipelined requests", envoy, 2, connections::pipelined);

    all.begin("HTTP/2: requests taken back", envoy, 2, http2::rapid_resets);
    all.begin("HTTP/2: many streams", envoy, 3, http2::many_streams);
    all.begin("HTTP/2: closed windows", envoy, 3, http2::closed_windows);
    all.begin("HTTP/2: control frames", envoy, 2, http2::control_frames);
    all.begin("HTTP/2: largest settings", envoy, 1, http2::largest_settings);
    all.begin("HTTP/2: CONTINUATION", envoy, 1, http2::continuations);
    all.begin("HTTP/2: a compressed bomb", envoy, 1, http2::compressed_bomb);
    all.begin("HTTP/2 at the sidecar: taken back", sidecar, 1, http2::rapid_resets);
    all.begin("HTTP/2 at the sidecar: many streams", sidecar, 2, http2::many_streams);
    all.begin("HTTP/2 at the sidecar: control frames", sidecar, 1, http2::control_frames);
    all.begin("HTTP/2 at the sidecar: largest settings", sidecar, 1, http2::largest_settings);
    all.begin("HTTP/2 at the sidecar: CONTINUATION", sidecar, 1, http2::continuations);
    all.begin("HTTP/2 at the sidecar: a bomb", sidecar, 1, http2::compressed_bomb);

    all.begin("cookies: half an id", envoy, 1, |it| cookies::visit(it, cookies::halves));
    all.begin("cookies: another ending", envoy, 1, |it| cookies::visit(it, cookies::endings));
    all.begin("cookies: what Odoo refuses", envoy, 1, |it| cookies::visit(it, cookies::refused));
    all.begin("cookies: no text", envoy, 1, |it| cookies::visit(it, cookies::no_text));
    all.begin("cookies: 60 KB", envoy, 1, |it| cookies::visit(it, cookies::huge));
    all.begin("cookies: from before a rotation", envoy, 1, |it| cookies::visit(it, cookies::outdated));
    all.begin("cookies: two lines", envoy, 1, cookies::two_lines);
    all.begin("forged headers", envoy, 2, headers::forge);
    all.begin("absurd heads", envoy, 2, headers::absurd);

    all.begin("a foreign web page at the sidecar", sidecar, 1, api::web_page);
    all.begin("claims without a right", sidecar, 1, api::claims);
    all.begin("claims that somebody left", sidecar, 1, api::left_sessions);
    all.begin("absurd questions to the sidecar", sidecar, 1, api::absurd);
    all.begin("absurd questions to its socket", local, 1, api::absurd);
    all.begin("long polls", sidecar, 200, api::long_poll);
    all.begin("junk at the cache's socket", cache, 4, frames::junk);
    attackers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_at_work_notice_no_attack() -> Result<()> {
    let seconds = std::env::var("MOORING_ATTACK_SECONDS").ok().and_then(|text| text.parse().ok());
    let seconds: u64 = seconds.unwrap_or(12);
    let folder = tempfile::tempdir()?;
    let stack = start(folder.path()).await?;
    let descriptors = limit_descriptors(None)?;
    let idle = IDLE.min((IDLE as u64 * descriptors / NEEDED) as usize);
    if idle < IDLE {
        say(&format!("REDUCED: only {idle} of {IDLE} idle connections, for ulimit -Hn is {descriptors}"));
    }

    let connections = http1();
    let habits = Habits { people: PEOPLE, settled: PEOPLE * 3 / 4, seed: rand::random() };
    let people = Witnesses::start(&connections, stack.address, habits).await?;
    sleep(WARM_UP).await;
    let before = measure(&stack)?;
    let active = stack.envoy.stat("http.odoo.downstream_cx_active").await?;
    let calm = people.notices.lock().expect("no panic").take_gaps();

    let logged = lines_logged(&stack);
    let watch = Watch::start(&stack);
    let cache_path = folder.path().join("cache.sock");
    let worker = Worker::start(cache_path.clone());
    let attackers = attack(
        Arc::new(Target {
            envoy: Door::Tcp(stack.address),
            admin: Door::Tcp(stack.envoy.admin()),
            sidecar: Door::Tcp(stack.sidecar_address),
            local: Door::Unix(folder.path().join("mooring.sock")),
            cache: Door::Unix(cache_path),
            nodes: Target::nodes(&stack.nodes),
            notices: Arc::clone(&people.notices),
        }),
        idle,
    );
    sleep(Duration::from_secs(seconds)).await;
    let attacked = people.notices.lock().expect("no panic").take_gaps();
    let harm = attackers.end().await?;
    let seen = watch.end().await?;
    // Everybody gets the present id of their session.
    sleep(WARM_UP).await;
    let worker = worker.end().await;

    let mut notices = people.end().await?;
    let lost = lost(&notices, &connections, stack.address).await?;
    let risen = risen(&notices, stack.nodes.iter().map(|node| node.endpoint.http)).await?;
    println!("  {} requests, {} moves, {} detours", notices.requests, notices.moves, notices.detours);
    let logged = lines_logged(&stack) - logged;
    compare("GETs", calm, attacked);
    describe(&stack, before, &seen).await?;
    println!("  {logged} lines were logged");
    let mut faults = faults(&notices, lost, risen, harm, &seen);
    if logged > 50 + seconds as usize {
        faults.push(format!("{logged} lines were logged"));
    }
    if let Err(error) = worker {
        faults.push(format!("the ORM cache failed a worker: {error:#}"));
    }
    faults.extend(left_over(&stack, before, active).await);
    faults.extend(growth(before, [seen.envoy, seen.sidecar], measure(&stack)?));
    for story in notices.stories.drain(..).chain(complaints(&stack)) {
        println!("    {story}");
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    ensure!(notices.requests > PEOPLE * 5, "only {} requests", notices.requests);
    ensure!(notices.sockets.echoes > PEOPLE, "only {} echoes of websockets", notices.sockets.echoes);
    Ok(())
}

/// Envoy's and the sidecar's.
fn measure(stack: &Stack) -> Result<[Footprint; 2]> {
    let sidecar = stack.sidecar.as_ref().expect("a sidecar").id();
    Ok([Footprint::of(stack.envoy.process.id())?, Footprint::of(sidecar)?])
}

/// What somebody noticed, or could have.
fn faults(notices: &Notices, lost: usize, risen: usize, harm: Vec<String>, seen: &Seen) -> Vec<String> {
    let mut faults = Vec::new();
    for (count, what) in [
        (notices.count(Wrong::Get), "GETs of people failed"),
        (notices.failed_posts, "POSTs, logins or websockets of people failed"),
        (notices.wrong_user, "answers were for somebody else"),
        (notices.count(Wrong::Logout), "people were logged out"),
        (notices.strays, "times another server showed somebody the login page"),
        (notices.sockets.closed, "websockets are not open again"),
        (lost, "people were logged out at the end"),
        (risen, "sessions are valid that were logged out"),
    ] {
        if count > 0 {
            faults.push(format!("{count} {what}"));
        }
    }
    faults.extend(harm);
    faults
        .extend(seen.troubles.iter().map(|(what, times)| format!("{what}, {times} of {} looks", seen.looks)));
    faults
}

/// What was not given back once the attackers are gone.
async fn left_over(stack: &Stack, before: [Footprint; 2], active: u64) -> Vec<String> {
    let mut faults = Vec::new();
    let connections = wait_until("Envoy has people's connections only", async || {
        let now = stack.envoy.stat("http.odoo.downstream_cx_active").await;
        now.is_ok_and(|now| now <= active + PEOPLE as u64)
    });
    faults.extend(connections.await.err().map(|error| error.to_string()));
    let descriptors = wait_until("the sidecar's descriptors are given back", async || {
        // Envoy keeps those that its filter needed when there was most to do.
        let kept = stack.envoy.stat("cluster.mooring.upstream_cx_active").await.unwrap_or_default();
        measure(stack).is_ok_and(|[_, now]| now.descriptors <= before[1].descriptors + 32 + kept)
    });
    faults.extend(descriptors.await.err().map(|error| error.to_string()));
    for _ in 0..100 {
        let troubles = watch::troubles(stack.sidecar_address).await;
        if troubles.is_empty() {
            return faults;
        }
        sleep(Duration::from_millis(100)).await;
    }
    faults.push("the sidecar is not well again afterwards".to_owned());
    faults
}

fn lines_logged(stack: &Stack) -> usize {
    let processes = [Some(&stack.envoy.process), stack.sidecar.as_ref()];
    processes.into_iter().flatten().map(|process| process.printed().lines().count()).sum()
}

/// What Envoy and the sidecar printed that an operator should see.
fn complaints(stack: &Stack) -> Vec<String> {
    let mut complaints = Vec::new();
    for process in [Some(&stack.envoy.process), stack.sidecar.as_ref()].into_iter().flatten() {
        let printed = process.printed();
        let bad = printed.lines().filter(|line| {
            ["WARN", "ERROR", "has ended", "panicked", "[critical]", "[error]"]
                .iter()
                .any(|word| line.contains(word))
        });
        complaints.extend(bad.take(8).map(str::to_owned));
    }
    complaints
}

/// What took more than its share, or kept it: before, at most and now.
fn growth(before: [Footprint; 2], most: [Footprint; 2], now: [Footprint; 2]) -> Vec<String> {
    let mut faults = Vec::new();
    for (who, place) in [("Envoy", 0), ("the sidecar", 1)] {
        let (before, most, now) = (before[place], most[place], now[place]);
        if most.resident_kb > MOST_GROWTH * before.resident_kb {
            faults.push(format!("{who} took {} KB, {} before", most.resident_kb, before.resident_kb));
        }
        if now.descriptors > before.descriptors + (most.descriptors - before.descriptors) / 2 {
            faults.push(format!("{who} keeps {} of {} descriptors", now.descriptors, most.descriptors));
        }
    }
    faults
}

/// How long things took, with and without.
fn compare(what: &str, mut calm: Vec<Duration>, mut attacked: Vec<Duration>) {
    let row = |share| {
        let [calm, attacked] = [&mut calm, &mut attacked].map(|times| at(times, share).as_secs_f64() * 1e3);
        format!("{calm:.1} → {attacked:.1} ms (×{:.1})", attacked / calm.max(0.001))
    };
    let [middle, most] = [0.5, 0.99].map(row);
    println!("  {what}: p50 {middle}, p99 {most}");
}

async fn describe(stack: &Stack, before: [Footprint; 2], seen: &Seen) -> Result<()> {
    let after = measure(stack)?;
    for (name, before, most, after) in
        [("Envoy", before[0], seen.envoy, after[0]), ("the sidecar", before[1], seen.sidecar, after[1])]
    {
        println!(
            "  {name}: {} → {} → {} MB, {} → {} → {} descriptors",
            before.resident_kb >> 10,
            most.resident_kb >> 10,
            after.resident_kb >> 10,
            before.descriptors,
            most.descriptors,
            after.descriptors
        );
    }
    let stats = [
        "^http.odoo.downstream_cx_(total|http2_total|protocol_error|overload.*)",
        "^http.odoo.downstream_rq_(4xx|5xx|total|overload.*)",
        "^cluster.odoo[_a-z]*.(health_check.failure|outlier_detection.ejections_enforced_total|upstream_rq_retry)$",
    ];
    for filter in stats {
        for line in stack.envoy.stats(filter).await?.lines().filter(|line| !line.ends_with(": 0")) {
            println!("  {line}");
        }
    }
    Ok(())
}

//! `cargo xtask demo`: a visible story with real processes.

use anyhow::{Context, Result, ensure};
use clap::Args;
use harness::{
    browser::{self, Browser, Method, tally},
    stack::{self, Stack},
};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::{build, report::Story};

#[derive(Args)]
pub struct Options {
    /// End after the story; the exit status says whether every step held
    #[arg(long)]
    once: bool,
    /// Print the story's facts as JSON
    #[arg(long)]
    json: bool,
}

/// Browsers that log in.
const BROWSERS: usize = 60;

/// Tells the story and ends: whether every step held.
pub fn once() -> Result<()> {
    run(&Options { once: true, json: false })
}

pub fn run(options: &Options) -> Result<()> {
    let story = Story::begin(options.json);
    story.note("building …");
    build::all()?;
    harness::tools::envoy()?;
    // One thread: processes end with the thread that started them.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminated = signal(SignalKind::terminate())?;
        let mut hung_up = signal(SignalKind::hangup())?;
        tokio::select! {
            result = tell(options, story) => result,
            _ = tokio::signal::ctrl_c() => Ok(()),
            _ = terminated.recv() => Ok(()),
            _ = hung_up.recv() => Ok(()),
        }
    })
}

async fn tell(options: &Options, mut story: Story) -> Result<()> {
    story.note("starting three Odoo stand-ins, the sidecar with its embedded store, and Envoy …");
    let mut stack =
        Stack::start(stack::Options { nodes: 4, running: 3, carry: true, ..stack::Options::default() })
            .await?;
    let http = browser::http1();
    let mut alice = stack.browser(&http);

    story.tell("Alice logs in", log_in(&mut alice).await);
    story.tell("her next twenty requests", twenty_requests(&mut alice).await);
    story.tell("her websocket", websocket(&mut alice).await);
    story.tell("she sends forged x-mooring headers", forged_headers(&mut alice).await);
    story.tell("Bob has another session: another server", another_node(&stack, &mut alice).await);

    let mut crowd = Vec::new();
    story.tell("sixty people log in", crowd_logs_in(&stack, &mut crowd).await);
    story.tell("odoo-4 joins: nobody moves", node_joins(&mut stack, &mut crowd).await);
    story.tell("newcomers use odoo-4 as well", newcomers(&stack).await);
    story.tell("the sidecar is killed: nobody notices", sidecar_killed(&mut stack, &mut crowd).await);
    story.tell("it is back: still nobody moves", sidecar_back(&mut stack, &mut crowd).await);
    story.tell("Alice's server is killed: she goes on", server_killed(&mut stack, &mut alice).await);
    story.tell("so does everybody who was there", all_logged_in(&mut crowd).await);
    story.tell("she logs out, her server comes back", logged_out(&mut stack, &mut alice).await);

    let urls = json!({
        "odoo": format!("http://{}/web/login", stack.address),
        "sidecar": format!("http://{}/v1/nodes", stack.sidecar_address),
        "envoy_admin": format!("http://127.0.0.1:{}", stack.bootstrap.0["admin"]["address"]["socket_address"]["port_value"]),
    });
    story.print_json(&urls)?;
    if options.once {
        ensure!(story.held(), "not every step held");
        return Ok(());
    }
    if !options.json {
        let url = |name: &str| urls[name].as_str().unwrap_or_default().to_owned();
        println!();
        println!("  Odoo stand-in   {}   (any name; the password is pw-NAME)", url("odoo"));
        println!(
            "  nodes           {} nodes --sidecar {}",
            harness::program("mooring").display(),
            stack.sidecar_address
        );
        println!("  Envoy's admin   {}", url("envoy_admin"));
        println!("  Ctrl-C ends everything.");
    }
    std::future::pending().await
}

/// Held or not, and what was seen.
type Outcome = Result<(bool, String)>;

async fn log_in(alice: &mut Browser) -> Outcome {
    let node = alice.log_in("alice").await?.node().to_owned();
    Ok((true, format!("on {node}")))
}

async fn twenty_requests(alice: &mut Browser) -> Outcome {
    let mut seen = Vec::new();
    for _ in 0..20 {
        // A fresh connection each: stickiness comes from the cookie.
        let mut request = alice.over(browser::http1());
        let answer = request.get("/odoo").await?;
        alice.sid = request.sid;
        seen.push((answer.node().to_owned(), answer.login().to_owned()));
    }
    let counts = tally(seen);
    let (node, login) = counts.keys().next().cloned().unwrap_or_default();
    Ok((
        counts.len() == 1 && login == "alice",
        format!("20 of 20 on {node}, as {login}, each over its own connection"),
    ))
}

async fn websocket(alice: &mut Browser) -> Outcome {
    let node = alice.get("/odoo").await?.node().to_owned();
    let echo = alice.websocket("hello").await?;
    Ok((echo == format!("{node}:alice:hello"), format!("on the gevent port of the same server: {echo}")))
}

async fn forged_headers(alice: &mut Browser) -> Outcome {
    let own = alice.get("/odoo").await?.node().to_owned();
    // 127.0.0.1:1 in base64, a list, and nonsense.
    let forged = [
        ("x-mooring-upstream", "MTI3LjAuMC4xOjE="),
        ("x-mooring-next", "127.0.0.1:1"),
        ("x-mooring-owner", "odoo-3"),
    ];
    let answer = alice.request(Method::GET, "/odoo", &forged, "").await?;
    let seen = answer.header("x-standin-seen");
    // The list of the next nodes is the filter's own.
    let held = answer.node() == own && answer.status == 200 && seen == "x-mooring-next";
    let told = if held { format!("no effect: still on {own}") } else { format!("{}, {seen}", answer.node()) };
    Ok((held, told))
}

async fn another_node(stack: &Stack, alice: &mut Browser) -> Outcome {
    let hers = alice.get("/odoo").await?.node().to_owned();
    let http = browser::http1();
    for _ in 0..50 {
        // Who comes without a cookie is placed by address; a session has a home of its own.
        let mut bob = stack.browser(&http);
        bob.sid = Some(browser::random_sid());
        let node = bob.get("/web/login").await?.node().to_owned();
        if node != hers {
            bob.log_in("bob").await?;
            let nodes: Vec<String> = ten_requests(&mut bob).await?;
            let all = nodes.iter().all(|other| *other == node);
            return Ok((all, format!("on {node}, {} of {} requests", nodes.len(), nodes.len())));
        }
    }
    Ok((false, format!("fifty browsers were all sent to {hers}")))
}

async fn ten_requests(browser: &mut Browser) -> Result<Vec<String>> {
    let mut nodes = Vec::new();
    for _ in 0..10 {
        nodes.push(browser.get("/odoo").await?.node().to_owned());
    }
    Ok(nodes)
}

async fn crowd_logs_in(stack: &Stack, crowd: &mut Vec<(Browser, String)>) -> Outcome {
    let http = browser::http1();
    for number in 0..BROWSERS {
        let mut browser = stack.browser(&http);
        browser.sid = Some(browser::random_sid());
        let node = browser.log_in(&format!("user{number}")).await?.node().to_owned();
        crowd.push((browser, node));
    }
    Ok((true, spread(crowd.iter().map(|(_, node)| node.clone()))))
}

fn spread(nodes: impl Iterator<Item = String>) -> String {
    let mut counts: Vec<_> = tally(nodes).into_iter().collect();
    counts.sort();
    counts.iter().map(|(node, count)| format!("{node}: {count}")).collect::<Vec<_>>().join(", ")
}

/// How many of the crowd are still where they logged in, and still logged in.
async fn still_there(crowd: &mut [(Browser, String)]) -> Result<usize> {
    let mut there = 0;
    for (number, (browser, node)) in crowd.iter_mut().enumerate() {
        let answer = browser.get("/odoo").await.with_context(|| format!("user{number}"))?;
        there += usize::from(answer.node() == node && answer.login() == format!("user{number}"));
    }
    Ok(there)
}

async fn node_joins(stack: &mut Stack, crowd: &mut [(Browser, String)]) -> Outcome {
    stack.start_node(3).await?;
    stack.wait_for_state("odoo-4", "active").await?;
    stack.wait_until_healthy(4).await?;
    let there = still_there(crowd).await?;
    Ok((there == crowd.len(), format!("{there} of {} on their server and logged in", crowd.len())))
}

async fn newcomers(stack: &Stack) -> Outcome {
    let http = browser::http1();
    let mut nodes = Vec::new();
    for _ in 0..BROWSERS {
        let mut browser = stack.browser(&http);
        browser.sid = Some(browser::random_sid());
        nodes.push(browser.get("/web/login").await?.node().to_owned());
    }
    let held = nodes.iter().any(|node| node == "odoo-4");
    Ok((held, spread(nodes.into_iter())))
}

async fn sidecar_killed(stack: &mut Stack, crowd: &mut [(Browser, String)]) -> Outcome {
    stack.sidecar.take().context("no sidecar")?.kill();
    let there = still_there(crowd).await?;
    Ok((there == crowd.len(), format!("{there} of {} on their server and logged in", crowd.len())))
}

async fn server_killed(stack: &mut Stack, alice: &mut Browser) -> Outcome {
    let node = alice.get("/odoo").await?.node().to_owned();
    stack.kill_node(&node);
    let answer = alice.get("/odoo").await?;
    let held = answer.status == 200 && answer.login() == "alice" && answer.node() != node;
    Ok((held, format!("from {node} to {}, as {}", answer.node(), answer.login())))
}

async fn all_logged_in(crowd: &mut [(Browser, String)]) -> Outcome {
    let mut logged_in = 0;
    for (number, (browser, _)) in crowd.iter_mut().enumerate() {
        logged_in += usize::from(browser.get("/odoo").await?.login() == format!("user{number}"));
    }
    Ok((logged_in == crowd.len(), format!("{logged_in} of {} logged in", crowd.len())))
}

/// Her old session must be of no use on any server, the one that was away included.
async fn logged_out(stack: &mut Stack, alice: &mut Browser) -> Outcome {
    let old = alice.clone();
    alice.get("/web/session/logout").await?;
    let dead = stack.nodes.iter().position(|node| node.process.is_none()).context("no dead server")?;
    stack.start_node(dead).await?;
    stack.wait_for_state(&stack.nodes[dead].id.clone(), "active").await?;
    let mut known = Vec::new();
    for node in &stack.nodes {
        let answer = old.at(node.endpoint.http).get("/odoo").await?;
        known.extend((!answer.login().is_empty()).then(|| node.id.clone()));
    }
    let told = if known.is_empty() { "her old session is valid nowhere".into() } else { known.join(", ") };
    Ok((known.is_empty(), told))
}

async fn sidecar_back(stack: &mut Stack, crowd: &mut [(Browser, String)]) -> Outcome {
    stack.start_sidecar().await?;
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    let there = still_there(crowd).await?;
    Ok((there == crowd.len(), format!("{there} of {} on their server and logged in", crowd.len())))
}

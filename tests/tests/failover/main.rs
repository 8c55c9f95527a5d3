//! A node dies, and nobody is logged out: sessions are carried.

mod halves;
mod night;
mod people;
mod revoke;
mod scenarios;
mod secrets;
mod town;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use harness::{
    browser::http1,
    envoy::Bootstrap,
    person::Person,
    stack::{Options, Stack},
};
use serde_json::json;

fn carried() -> Options {
    let sidecar_args = ["--probe-interval-ms", "200"].map(str::to_owned).to_vec();
    Options { carry: true, sidecar_args, ..Options::default() }
}

/// Logs in, kills the node at once, goes on; again and again.
#[tokio::test]
async fn who_just_logged_in_survives_the_death_of_their_node() -> Result<()> {
    let rounds = std::env::var("MOORING_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(25);
    let _alone = night::ONE_AT_A_TIME.lock().await;
    // So that Envoy soon takes a node for well that is back: two dead at once are another story.
    let quick = |bootstrap: &mut Bootstrap| {
        let check = &mut bootstrap.cluster("odoo")["health_checks"][0];
        (check["interval"], check["no_traffic_interval"]) = (json!("0.2s"), json!("0.2s"));
    };
    let mut stack = Stack::start_with(carried(), quick).await?;
    let connections = http1();
    let (mut survived, mut gaps) = (0, Vec::new());
    for round in 0..rounds {
        let mut person = Person::log_in(stack.browser(&connections), format!("user{round}")).await?;
        stack.kill_node(&person.node);
        let asked = Instant::now();
        let answer = person.browser.get("/odoo").await?;
        gaps.push(asked.elapsed());
        if answer.status == 200 && answer.login() == person.login {
            survived += 1;
            ensure!(answer.node() != person.node, "a dead node answers");
            person.node = answer.node().to_owned();
            person.works().await?;
        } else {
            println!("round {round}: {} as {:?} at {}", answer.status, answer.login(), answer.node());
        }
        let place = stack.nodes.iter().position(|node| node.process.is_none()).expect("a dead node");
        stack.start_node(place).await?;
        stack.wait_for_state(&stack.nodes[place].id.clone(), "active").await?;
        stack.wait_until_healthy(3).await?;
    }
    gaps.sort();
    println!(
        "{survived} of {rounds} survived; the request after the kill took {:.1?} in the middle, {:.1?} at most",
        gaps[gaps.len() / 2],
        gaps.last().copied().unwrap_or(Duration::ZERO)
    );
    ensure!(survived == rounds, "{} were logged out", rounds - survived);
    Ok(())
}

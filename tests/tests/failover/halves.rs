//! Whoever has less than the whole id of a session, or an id from before a rotation, ends nothing.

use std::time::Duration;

use anyhow::{Result, ensure};
use harness::{
    browser::{Browser, Method, http1},
    person::Person,
    stack::{Options, Stack},
};
use tokio::time::sleep;

use crate::{carried, night::ONE_AT_A_TIME};

/// Sends a request with these `cookie` headers.
async fn ask(
    stack: &Stack,
    method: Method,
    path: &str,
    cookies: &[String],
    body: &'static str,
) -> Result<u16> {
    let mut browser = stack.browser(&http1());
    browser.headers = cookies.iter().map(|line| ("cookie", line.clone())).collect();
    let kind = [("content-type", "application/x-www-form-urlencoded")];
    Ok(browser.request(method, path, &kind, body).await?.status)
}

async fn is_in(person: &mut Person, after: &str) -> Result<()> {
    let answer = person.browser.get("/odoo").await?;
    ensure!(answer.login() == person.login, "{} is out after {after}", person.login);
    Ok(())
}

#[tokio::test]
async fn less_than_the_whole_id_ends_nothing() -> Result<()> {
    let _alone = ONE_AT_A_TIME.lock().await;
    for profile in [18, 19] {
        let stack = Stack::start(Options { profile, ..carried() }).await?;
        let mut alice = Person::log_in(stack.browser(&http1()), "alice".into()).await?;
        let mut bob = Person::log_in(stack.browser(&http1()), "bob".into()).await?;
        let (whole, other) = (alice.browser.sid.clone().unwrap_or_default(), bob.browser.sid.clone());
        let (half, other) = (whole[..42].to_owned(), other.unwrap_or_default());
        let line = |sid: &str| format!("session_id={sid}");
        let cookies = [
            ("half of it", vec![line(&half)]),
            ("a made-up end that Odoo refuses", vec![line(&format!("{half}{}", "!".repeat(42)))]),
            ("a made-up end that Odoo takes", vec![line(&format!("{half}{}", "x".repeat(42)))]),
            ("a longer one", vec![line(&format!("{whole}x"))]),
            ("quotes inside", vec![line(&format!("\"{whole}"))]),
            ("two headers", vec![line(&whole), line(&other)]),
            ("two headers, the other way round", vec![line(&other), "tz=UTC".into(), line(&whole)]),
            ("a header of another cookie", vec![line(&whole), "tz=UTC".into()]),
        ];
        for (what, cookies) in &cookies {
            for (method, path, body) in [
                (Method::GET, "/web/login", ""),
                (Method::GET, "/web/login?debug=1", ""),
                (Method::GET, "/web/session/logout", ""),
                (Method::POST, "/web/login", "login=mallory&password=wrong"),
            ] {
                let status = ask(&stack, method, path, cookies, body).await?;
                ensure!(status < 500, "{path} with {what}: {status}");
            }
            let after = format!("requests with {what}, as Odoo {profile}");
            is_in(&mut alice, &after).await?;
            is_in(&mut bob, &after).await?;
        }
        // An end would come to the other nodes by itself.
        sleep(Duration::from_millis(500)).await;
        is_in(&mut alice, "all of that").await?;
        is_in(&mut bob, "all of that").await?;
        // With all of it a logout is one, on every node.
        let mut thief = alice.browser.clone();
        ensure!(alice.browser.get("/web/session/logout").await?.status == 303, "no logout");
        ensure!(thief.get("/odoo").await?.login().is_empty(), "she is still in");
    }
    Ok(())
}

/// A mobile app and a browser share a session. The browser gets the rotated id; after the time that Odoo gives
/// the old one, the app still asks with it.
#[tokio::test]
async fn an_id_from_before_a_rotation_ends_nothing() -> Result<()> {
    let _alone = ONE_AT_A_TIME.lock().await;
    let times = ["--rotation-secs", "1", "--rotation-grace-secs", "1"].map(str::to_owned).to_vec();
    let stack = Stack::start(Options { standin_args: times, ..carried() }).await?;
    let mut people = Vec::new();
    for number in 0..6 {
        people.push(Person::log_in(stack.browser(&http1()), format!("user{number}")).await?);
    }
    let mut apps: Vec<Browser> = people.iter().map(|person| person.browser.clone()).collect();
    sleep(Duration::from_millis(1_200)).await;
    for (person, app) in people.iter_mut().zip(&apps) {
        person.browser.get("/odoo").await?;
        ensure!(person.browser.sid != app.sid, "no rotation");
    }
    sleep(Duration::from_millis(1_200)).await;
    for (person, app) in people.iter_mut().zip(&mut apps) {
        ensure!(app.get("/odoo").await?.login().is_empty(), "the old id is still good");
        is_in(person, "the old id").await?;
    }
    sleep(Duration::from_millis(500)).await;
    for person in &mut people {
        is_in(person, "the old id, a moment later").await?;
    }
    Ok(())
}

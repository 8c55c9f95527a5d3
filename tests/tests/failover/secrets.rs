//! The secret that the sidecars share: given in two ways, a wrong one, a new one.

use anyhow::{Result, ensure};
use harness::{browser::http1, person::Person, process::wait_until};
use serde_json::Value;

use crate::{
    night::{Night, ONE_AT_A_TIME},
    people::{all_are_in, all_are_in_without, log_in, sid, start_again, wait_until_copied},
    town::{SECRET, Secret, Town},
};

const OTHER: &str = "another secret of at least thirty-two characters";
/// 18, whose sessions keep their ids and files.
const PROFILE: u32 = 18;

#[tokio::test]
async fn a_secret_in_a_variable_is_the_same_as_in_a_file() -> Result<()> {
    let _alone = ONE_AT_A_TIME.lock().await;
    let variable = |town: &mut Town| town.secrets[1] = Secret::Variable(SECRET.to_owned());
    let mut town = Town::start_with(&Night::new("", PROFILE), variable).await?;
    let mut people = log_in(&town, &http1()).await?;
    wait_until_copied(&town, &people).await?;
    // What others sealed is there, and what was sealed there is elsewhere.
    let copies = people
        .iter()
        .filter(|it| it.node != "odoo-2" && sid(it).is_ok_and(|sid| town.holders(sid).contains(&1)));
    ensure!(copies.count() > 0, "no copies on odoo-2");
    all_are_in_without(&mut town, &mut people, 1).await?;
    ensure!(!town.logs()?.contains(SECRET), "the secret is in a log");
    Ok(())
}

/// Everybody's session is somewhere, and wherever it is it is theirs.
fn none_is_damaged(town: &Town, people: &[Person]) -> Result<()> {
    for person in people {
        let (sid, holders) = (sid(person)?, town.holders(sid(person)?));
        ensure!(!holders.is_empty(), "the session of {} is gone", person.login);
        for place in holders {
            let file = town.stack.sessions(&town.stack.nodes[place].id).join(&sid[..2]).join(sid);
            let session: Value = serde_json::from_slice(&std::fs::read(file)?)?;
            ensure!(session["login"] == person.login, "{} has {session}", person.login);
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_wrong_secret_is_told_and_damages_nothing() -> Result<()> {
    let _alone = ONE_AT_A_TIME.lock().await;
    let wrong = |town: &mut Town| town.secrets[2] = Secret::Variable(OTHER.to_owned());
    let mut town = Town::start_with(&Night::new("", PROFILE), wrong).await?;
    let mut people = log_in(&town, &http1()).await?;
    let failed = r#"mooring_session_copies_total{node="odoo-3",outcome="Failed"}"#;
    wait_until("copies fail", async || town.metric(2, failed).await.is_ok_and(|failed| failed > 0)).await?;
    let told = town.beside[2].as_ref().map(|sidecar| sidecar.printed()).unwrap_or_default();
    ensure!(told.contains("sealed with another secret"), "nobody is told: {told}");

    // Whose copy would be there is shown the login page while their node is away; nobody gets anything else.
    town.stack.kill_node("odoo-1");
    let mut out = 0;
    for person in &mut people {
        let answer = person.browser.clone().get("/odoo").await?;
        let is_out = person.node == "odoo-1" && answer.login().is_empty() && answer.node() == "odoo-3";
        ensure!(is_out || answer.login() == person.login, "{} is {:?}", person.login, answer.login());
        out += usize::from(is_out);
    }
    start_again(&mut town, 0).await?;
    none_is_damaged(&town, &people)?;
    println!("{out} of {} people were shown the login page because of the wrong secret", people.len());

    // With the right one everything is as if nothing had happened.
    town.secrets[2] = Secret::File(SECRET.to_owned());
    drop(town.beside[2].take());
    town.start_beside(2).await?;
    wait_until("everybody is in again", async || all_are_in(&mut people).await.is_ok()).await?;
    let looked = async || town.is_ready(2).await;
    wait_until("the sidecar has looked at all sessions", looked).await?;
    all_are_in_without(&mut town, &mut people, 0).await?;
    let logs = town.logs()?;
    ensure!(!logs.contains(SECRET) && !logs.contains(OTHER), "a secret is in a log");
    Ok(())
}

#[tokio::test]
async fn copies_sealed_with_an_older_secret_stay_readable() -> Result<()> {
    let _alone = ONE_AT_A_TIME.lock().await;
    let mut town = Town::start(&Night::new("", PROFILE)).await?;
    let connections = http1();
    let mut people = log_in(&town, &connections).await?;
    wait_until_copied(&town, &people).await?;
    // No sidecar that has the files is there to seal them anew.
    town.beside.iter_mut().for_each(|sidecar| drop(sidecar.take()));
    let sessions = town.stack.sessions("odoo-2");
    std::fs::remove_dir_all(&sessions)?;
    std::fs::create_dir(&sessions)?;
    for place in [1, 0, 2] {
        town.secrets[place] = Secret::File(format!("{OTHER}\n{SECRET}\n"));
        town.start_beside(place).await?;
        let theirs = || people.iter().filter(|person| person.node == "odoo-2");
        let back = async || theirs().all(|it| sid(it).is_ok_and(|sid| town.holders(sid).contains(&1)));
        wait_until("the files are back that only the store had", back).await?;
    }
    wait_until_copied(&town, &people).await?;
    people.extend(log_in(&town, &connections).await?);
    wait_until_copied(&town, &people).await?;
    all_are_in_without(&mut town, &mut people, 2).await
}

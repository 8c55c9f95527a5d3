//! `mooring sessions revoke`, while a server that has the session is away.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use harness::{
    browser::{Browser, http1},
    person::Person,
    process::wait_until,
    program,
};

use crate::{
    night::{Night, ONE_AT_A_TIME},
    people::{all_are_in, log_in, sid, wait_until_copied},
    town::Town,
};

/// Runs the command, with a cookie on its standard input if there is one. What it printed.
fn revoke(town: &Town, arguments: &[&str], cookie: Option<&str>) -> Result<String> {
    let mut command = Command::new(program("mooring"));
    command.args(["sessions", "revoke", "--sidecar", &town.stack.sidecar_address.to_string()]);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let mut input = child.stdin.take().context("no standard input")?;
    if let Some(sid) = cookie {
        write!(input, "Cookie: tz=UTC; session_id={sid}")?;
        // It waits for the end of its input now.
        let list = Command::new("ps").args(["axeww", "-o", "args"]).output()?;
        let listed = String::from_utf8_lossy(&list.stdout);
        ensure!(listed.contains("sessions revoke"), "ps does not show the command: {listed}");
        ensure!(!listed.contains(&sid[..42]), "ps shows the session id");
    }
    drop(input);
    let output = child.wait_with_output()?;
    let printed =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    ensure!(output.status.success(), "{printed}");
    Ok(printed)
}

/// Takes a node and its sidecar away, with its files.
fn take_away(town: &mut Town, place: usize) {
    drop(town.beside[place].take());
    let id = town.stack.nodes[place].id.clone();
    town.stack.kill_node(&id);
}

/// Brings them back. Until then, and from then on, nobody gets in with the ended sessions.
async fn bring_back(town: &mut Town, place: usize, ended: &[Person]) -> Result<()> {
    let gone = async || ended.iter().all(|it| sid(it).is_ok_and(|sid| town.holders(sid) == [place]));
    wait_until("the other servers have no file of the sessions", gone).await?;
    all_are_out(town, ended).await?;
    town.stack.start_node(place).await?;
    town.start_beside(place).await?;
    all_are_out(town, ended).await?;
    let gone = async || ended.iter().all(|it| sid(it).is_ok_and(|sid| town.holders(sid).is_empty()));
    wait_until("the server that was away has no file of the sessions", gone).await?;
    town.stack.wait_for_state(&town.stack.nodes[place].id, "active").await?;
    all_are_out(town, ended).await?;
    for (person, node) in ended.iter().flat_map(|it| town.stack.nodes.iter().map(move |node| (it, node))) {
        let mut browser = Browser::new(http1(), node.endpoint.http);
        browser.sid.clone_from(&person.browser.sid);
        ensure!(browser.get("/odoo").await?.login().is_empty(), "{} is in at {}", person.login, node.id);
    }
    Ok(())
}

async fn all_are_out(town: &Town, ended: &[Person]) -> Result<()> {
    for person in ended {
        let answer = person.browser.at(town.stack.address).get("/odoo").await?;
        ensure!(answer.login().is_empty(), "{} is in at {}", person.login, answer.node());
    }
    Ok(())
}

#[tokio::test]
async fn revoked_sessions_end_everywhere_and_for_good() -> Result<()> {
    let _alone = ONE_AT_A_TIME.lock().await;
    let mut town = Town::start_with(&Night::new("", 19), |town| town.log = "debug").await?;
    let mut people = log_in(&town, &http1()).await?;
    wait_until_copied(&town, &people).await?;
    let sids: Vec<String> = people.iter().map(|it| sid(it).map(str::to_owned)).collect::<Result<_>>()?;

    // One session, while its server is away.
    let at =
        |people: &[Person], id: &str| people.iter().position(|it| it.node == id).context("nobody is there");
    let one = people.swap_remove(at(&people, "odoo-1")?);
    take_away(&mut town, 0);
    town.stack.wait_for_state("odoo-1", "down").await?;
    let printed = revoke(&town, &["-"], Some(sid(&one)?))?;
    ensure!(printed == "1 session has ended on every node\n", "{printed}");
    bring_back(&mut town, 0, &[one]).await?;
    all_are_in(&mut people).await?;

    // All of a server's.
    wait_until_copied(&town, &people).await?;
    let (theirs, mut others): (Vec<_>, Vec<_>) = people.into_iter().partition(|it| it.node == "odoo-2");
    take_away(&mut town, 1);
    town.stack.wait_for_state("odoo-2", "down").await?;
    let said = revoke(&town, &["--node", "odoo-2"], None)?;
    ensure!(said == format!("{} sessions have ended on every node\n", theirs.len()), "{said}");
    bring_back(&mut town, 1, &theirs).await?;
    all_are_in(&mut others).await?;

    let told = [town.logs()?, printed, said].concat();
    ensure!(told.contains("Vanished") || told.contains("looked at"), "the sidecars do not say much");
    // The part that stays when an id is rotated.
    ensure!(!sids.iter().any(|sid| told.contains(&sid[..42])), "a session id is in a log");
    Ok(())
}

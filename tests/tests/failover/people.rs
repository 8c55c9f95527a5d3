//! A few people whose sessions are looked at one by one.

use anyhow::{Context, Result, ensure};
use harness::{browser::Connections, person::Person, process::wait_until};

use crate::town::Town;

/// Logs people in until each node has a few of them, and waits until all sessions have their copy.
pub async fn log_in(town: &Town, connections: &Connections) -> Result<Vec<Person>> {
    const ON_EACH: usize = 3;
    let mut people: Vec<Person> = Vec::new();
    let few = |people: &[Person], id: &str| people.iter().filter(|it| it.node == id).count() < ON_EACH;
    while town.stack.nodes.iter().any(|node| few(&people, &node.id)) {
        let login = format!("user{}", people.len());
        people.push(Person::log_in(town.stack.browser(connections), login).await?);
        ensure!(people.len() < 100, "a node gets nobody");
    }
    Ok(people)
}

/// Waits until everybody's session is on two nodes.
pub async fn wait_until_copied(town: &Town, people: &[Person]) -> Result<()> {
    let copied = async || people.iter().all(|it| sid(it).is_ok_and(|sid| town.holders(sid).len() >= 2));
    if let Err(error) = wait_until("every session is on two nodes", copied).await {
        let places = people
            .iter()
            .map(|it| format!("{} of {}: {:?}", it.login, it.node, sid(it).map(|sid| town.holders(sid))));
        println!("{}", places.collect::<Vec<_>>().join("\n"));
        return Err(error);
    }
    Ok(())
}

/// Everybody is logged in, wherever.
pub async fn all_are_in(people: &mut [Person]) -> Result<()> {
    for person in people {
        let answer = person.browser.get("/odoo").await?;
        let who = (answer.status, answer.login());
        ensure!(who == (200, &person.login), "{} gets {who:?} at {}", person.login, answer.node());
        person.node = answer.node().to_owned();
    }
    Ok(())
}

/// Everybody is logged in while a node is dead; then it is started again.
pub async fn all_are_in_without(town: &mut Town, people: &mut [Person], place: usize) -> Result<()> {
    let id = town.stack.nodes[place].id.clone();
    town.stack.kill_node(&id);
    all_are_in(people).await?;
    ensure!(people.iter().all(|person| person.node != id), "a dead node answers");
    start_again(town, place).await
}

/// Starts a node again, and waits until it is used: Envoy leaves out for seconds who refused connections.
pub async fn start_again(town: &mut Town, place: usize) -> Result<()> {
    town.stack.start_node(place).await?;
    town.stack.wait_for_state(&town.stack.nodes[place].id, "active").await?;
    town.stack.wait_until_healthy(3).await
}

/// Their session id.
pub fn sid(person: &Person) -> Result<&str> {
    person.browser.sid.as_deref().context("no session")
}

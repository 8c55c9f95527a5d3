//! `GET /v1/watch`: what filters wait on.

use affinity::{
    NodeId,
    wire::{Change, Owner},
};

use super::*;

fn change(name: &str, node: &str, epoch: u64) -> Result<Change> {
    Ok(Change { key: key(name), owner: Some(Owner { node: NodeId::new(node)?, epoch }) })
}

fn is_quiet(reply: &WatchReply) -> bool {
    !reply.reset && reply.changes.is_empty() && reply.membership.is_none()
}

#[tokio::test]
async fn who_knows_nothing_is_told_everything_at_once() -> Result<()> {
    let node = FakeNode::start(&[200]).await?;
    let sidecar = Sidecar::start(&[node.spec("a")], &[]).await?;
    let seen = sidecar.wait_for(&[NodeState::Active]).await?;
    let started = Instant::now();
    let reply = sidecar.watch(Cursor::default(), 0, FOREVER).await?;
    ensure!(started.elapsed() < Duration::from_secs(10), "it waited {:?}", started.elapsed());
    let membership = reply.membership.as_ref().context("no membership")?;
    ensure!(reply.reset && reply.changes.is_empty() && reply.cursor.generation != 0, "{reply:?}");
    ensure!(membership.nodes()[0].http == node.address && membership.digest() == seen.1);
    // A cursor of another log, or of this one's future, is no better than none.
    let other = Cursor { generation: seen.0.generation ^ 1, ..seen.0 };
    let future = Cursor { position: seen.0.position + 1, ..seen.0 };
    for cursor in [other, future] {
        let reply = sidecar.watch(cursor, seen.1, FOREVER).await?;
        ensure!(reply.reset && reply.membership.is_none() && reply.cursor == seen.0, "{reply:?}");
    }
    // Whose nodes are others is told the nodes, and need not forget the owners.
    let reply = sidecar.watch(seen.0, seen.1 ^ 1, FOREVER).await?;
    ensure!(!reply.reset && reply.membership.is_some(), "{reply:?}");
    Ok(())
}

#[tokio::test]
async fn it_waits_while_nothing_is_new() -> Result<()> {
    let node = FakeNode::start(&[200]).await?;
    let sidecar = Sidecar::start(&[node.spec("a"), "b=127.0.0.1:2".to_owned()], &[]).await?;
    let (cursor, digest) = sidecar.wait_for(&[NodeState::Active, NodeState::Down]).await?;
    for wait_ms in [0, 700] {
        let started = Instant::now();
        let reply = sidecar.watch(cursor, digest, wait_ms).await?;
        ensure!(started.elapsed() >= Duration::from_millis(wait_ms.into()), "{:?}", started.elapsed());
        ensure!(is_quiet(&reply) && reply.cursor == cursor, "{reply:?}");
    }
    // Neither a first claim nor one that is refused is news.
    let watch = sidecar.waiting(cursor, digest).await?;
    ensure!(sidecar.claim("s", "a", 0).await?.granted && !sidecar.claim("s", "b", 9).await?.granted);
    tokio::time::sleep(Duration::from_millis(300)).await;
    ensure!(!watch.is_finished(), "{:?}", watch.await??);
    watch.abort();
    Ok(())
}

#[tokio::test]
async fn it_wakes_when_a_session_moves_and_tells_all_that_was_missed() -> Result<()> {
    let node = FakeNode::start(&[200]).await?;
    let others = ["b=127.0.0.1:2", "c=127.0.0.1:3"].map(str::to_owned);
    let sidecar = Sidecar::start(&[&[node.spec("a")], &others[..]].concat(), &[]).await?;
    let states = [NodeState::Active, NodeState::Down, NodeState::Down];
    let (begin, digest) = sidecar.wait_for(&states).await?;
    sidecar.claim("s", "a", 0).await?;
    let watch = sidecar.waiting(begin, digest).await?;
    sidecar.claim("s", "b", 1).await?;
    let reply = tokio::time::timeout(Duration::from_secs(10), watch).await???;
    ensure!(!reply.reset && reply.changes == [change("s", "b", 2)?], "{reply:?}");
    ensure!(reply.cursor == Cursor { position: begin.position + 1, ..begin }, "{reply:?}");

    sidecar.claim("t", "a", 6).await?;
    sidecar.claim("s", "c", 2).await?;
    let late = sidecar.watch(begin, digest, FOREVER).await?;
    ensure!(late.changes == [change("s", "b", 2)?, change("t", "a", 7)?, change("s", "c", 3)?], "{late:?}");
    let later = sidecar.watch(reply.cursor, digest, FOREVER).await?;
    ensure!(later.changes == late.changes[1..] && later.cursor == late.cursor, "{later:?}");
    Ok(())
}

#[tokio::test]
async fn it_wakes_when_a_node_goes_down() -> Result<()> {
    let (a, b) = (FakeNode::start(&[200]).await?, FakeNode::start(&[200]).await?);
    let sidecar = Sidecar::start(&[a.spec("a"), b.spec("b")], &[]).await?;
    let (cursor, digest) = sidecar.wait_for(&[NodeState::Active, NodeState::Active]).await?;
    let watch = sidecar.waiting(cursor, digest).await?;
    drop(b);
    let reply = tokio::time::timeout(Duration::from_secs(10), watch).await???;
    ensure!(!reply.reset && reply.changes.is_empty() && reply.cursor == cursor, "{reply:?}");
    let membership = reply.membership.context("no membership")?;
    let states: Vec<_> = membership.nodes().iter().map(|node| node.state).collect();
    ensure!(states == [NodeState::Active, NodeState::Down], "{states:?}");
    Ok(())
}

#[tokio::test]
async fn a_restarted_sidecar_s_cursor_is_another() -> Result<()> {
    let node = FakeNode::start(&[200]).await?;
    let mut sidecar = Sidecar::start(&[node.spec("a")], &[]).await?;
    let (cursor, digest) = sidecar.wait_for(&[NodeState::Active]).await?;
    sidecar.process.terminate()?;
    sidecar.process = start_in(sidecar.folder.path(), sidecar.address, &[node.spec("a")], &[]).await?;
    sidecar.wait_for(&[NodeState::Active]).await?;
    let reply = sidecar.watch(cursor, digest, FOREVER).await?;
    ensure!(
        reply.reset && reply.membership.is_none(),
        "the nodes are the same, the owners in doubt: {reply:?}"
    );
    Ok(())
}

#[tokio::test]
async fn filters_that_wait_are_counted_until_they_leave() -> Result<()> {
    let node = FakeNode::start(&[200]).await?;
    let sidecar = Sidecar::start(&[node.spec("a")], &[]).await?;
    let (cursor, digest) = sidecar.wait_for(&[NodeState::Active]).await?;
    let count = async || metrics::value(&sidecar, "mooring_watchers").await;
    ensure!(count().await? == 0.0);
    let mut watches = Vec::new();
    for _ in 0..3 {
        watches.push(sidecar.waiting(cursor, digest).await?);
    }
    ensure!(count().await? == 3.0, "{}", count().await?);
    watches.iter().for_each(tokio::task::JoinHandle::abort);
    let started = Instant::now();
    while count().await? > 0.0 {
        ensure!(started.elapsed() < Duration::from_secs(10), "{} still wait", count().await?);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

#[tokio::test]
async fn what_is_no_question_is_refused() -> Result<()> {
    let sidecar = Sidecar::start(&[absent("a")], &[]).await?;
    for query in [
        "",
        "?generation=0&position=0&membership=0",
        "?generation=0&position=0&membership=0&wait_ms=-1",
        "?generation=0&position=0&membership=0&wait_ms=4294967296",
        "?generation=18446744073709551616&position=0&membership=0&wait_ms=0",
        "?generation=0&position=x&membership=0&wait_ms=0",
        "?generation=0&position=0&membership=0&wait_ms=0&extra=1",
        "?generation=0&generation=0&position=0&membership=0&wait_ms=0",
        "?generation=%ff&position=0&membership=0&wait_ms=0",
    ] {
        let answer = sidecar.get(&format!("/v1/watch{query}")).await?;
        ensure!(answer.status == 400 && !answer.body.is_empty(), "{query}: {}", answer.status);
    }
    Ok(())
}

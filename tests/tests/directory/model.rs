//! A model check: many clients claim and look up at random through three sidecars, while the cables to
//! Redis are cut and sidecars are killed. Whatever anybody is told must fit together.

use std::{collections::BTreeMap, sync::Mutex};

use affinity::wire::{ClaimReply, Owner, OwnerReply};
use harness::browser::Answer;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;

const SIDECARS: usize = 3;
const CLIENTS: u64 = 12;
const SESSIONS: u32 = 25;

/// Who owned a session in which epoch, as anybody was told.
#[derive(Default)]
struct History(Mutex<BTreeMap<(SessionKey, u64), NodeId>>);

impl History {
    /// Takes in what was told; two owners in one epoch are an error.
    fn told(&self, key: SessionKey, owner: &Owner) -> Result<()> {
        let mut all = self.0.lock().expect("no panic");
        let known = all.entry((key, owner.epoch)).or_insert_with(|| owner.node.clone());
        ensure!(
            *known == owner.node,
            "epoch {} of {key} is both {known}'s and {}'s",
            owner.epoch,
            owner.node
        );
        Ok(())
    }

    fn last(&self, key: SessionKey) -> u64 {
        let all = self.0.lock().expect("no panic");
        all.range((key, 0)..=(key, u64::MAX)).next_back().map_or(0, |((_, epoch), _)| *epoch)
    }
}

fn session(number: u32) -> SessionKey {
    SessionKey::of_session_id(&number.to_be_bytes())
}

async fn claim(sidecar: SocketAddr, claim: &Claim) -> Result<Answer> {
    let body = Full::new(Bytes::from(wire::encode(claim)));
    let request = Request::post(format!("http://{sidecar}/v1/claims")).body(body)?;
    browser::send(&browser::http1(), request).await
}

async fn look_up(sidecar: SocketAddr, key: SessionKey) -> Result<Option<Owner>> {
    let answer = browser::get(sidecar, &format!("/v1/owners/{key}")).await?;
    ensure!(answer.status == 200, "{}", answer.text());
    Ok(wire::decode::<OwnerReply>(&answer.body).context("no reply")?.owner)
}

/// One client, until it is told to stop; how often it was answered, and how often not.
async fn client(
    seed: u64,
    sidecars: [SocketAddr; SIDECARS],
    history: Arc<History>,
    stop: Arc<AtomicBool>,
) -> Result<(usize, usize)> {
    let (mut random, mut answered, mut failed) = (StdRng::seed_from_u64(seed), 0, 0);
    while !stop.load(Ordering::Relaxed) {
        let key = session(random.random_range(0..SESSIONS));
        let sidecar = sidecars[random.random_range(0..SIDECARS)];
        if random.random_ratio(1, 3) {
            let before = history.last(key);
            // One that is killed or knows nothing while its cable is cut says so.
            match look_up(sidecar, key).await {
                Ok(Some(owner)) => history.told(key, &owner)?,
                Ok(None) => ensure!(before == 0, "{key} had epoch {before} and is forgotten"),
                Err(_) => failed += 1,
            }
        } else {
            let expect = match random.random_range(0..4) {
                0..=2 => history.last(key),
                _ => random.random_range(0..3),
            };
            // Nobody claims from an epoch that cannot have been: Redis believes who says so.
            let expect = expect.min(history.last(key));
            let node = NodeId::new(format!("odoo-{}", random.random_range(1..=4)))?;
            match claim(sidecar, &Claim { key, node: node.clone(), expect, origin: wire::Origin::Visit })
                .await
            {
                Ok(answer) if answer.status == 200 => {
                    let reply: ClaimReply = wire::decode(&answer.body).context("no reply")?;
                    ensure!(!reply.granted || reply.owner.node == node, "granted to another: {reply:?}");
                    history.told(key, &reply.owner)?;
                }
                _ => failed += 1,
            }
        }
        answered += 1;
        tokio::time::sleep(Duration::from_millis(random.random_range(0..8))).await;
    }
    Ok((answered, failed))
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_is_told_the_same_whatever_breaks() -> Result<()> {
    // Longer campaigns set the time, and a seed to see a failure again.
    let variable = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = variable("MOORING_MODEL_SEED").unwrap_or_else(rand::random);
    let seconds = variable("MOORING_MODEL_SECONDS").unwrap_or(8);
    println!("MOORING_MODEL_SEED={seed}");
    let folder = tempfile::tempdir()?;
    let (_redis, redis) = start_redis(folder.path()).await?;
    let (mut cables, mut sidecars) = (Vec::new(), Vec::new());
    let node = ["--node=odoo-1=127.0.0.1:1".to_owned()];
    let open = async |cable: &Cable, address| {
        let store = format!("redis://{}/0", cable.address);
        start_sidecar_at(folder.path(), address, &store, &node).await
    };
    let mut addresses = [local(0); SIDECARS];
    for address in &mut addresses {
        *address = local(free_port()?);
        let cable = Cable::to(redis).await?;
        sidecars.push(Some(open(&cable, *address).await?));
        cables.push(cable);
    }
    let (history, stop) = (Arc::new(History::default()), Arc::new(AtomicBool::new(false)));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| tokio::spawn(client(seed ^ number, addresses, Arc::clone(&history), Arc::clone(&stop))))
        .collect();

    let (mut random, began, mut broken) = (StdRng::seed_from_u64(!seed), Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(seconds) {
        tokio::time::sleep(Duration::from_millis(random.random_range(50..600))).await;
        let place = random.random_range(0..SIDECARS);
        broken += 1;
        match random.random_range(0..4) {
            0 => cables[place].cut(),
            1 => cables[place].delay(Duration::from_millis(random.random_range(1..300))),
            2 => cables[place].mend(),
            _ => {
                sidecars[place].take().context("no sidecar")?.kill();
                sidecars[place] = Some(open(&cables[place], addresses[place]).await?);
            }
        }
    }
    cables.iter().for_each(Cable::mend);
    let healed = Instant::now();
    // Answers to what was asked before may still be on their way; nobody asks anew.
    stop.store(true, Ordering::Relaxed);
    let (mut answered, mut failed) = (0, 0);
    for client in clients {
        let (asked, unanswered) = client.await?.with_context(|| format!("MOORING_MODEL_SEED={seed}"))?;
        (answered, failed) = (answered + asked, failed + unanswered);
    }

    let connection = redis::Client::open(format!("redis://{redis}/0"))?;
    let mut connection = connection.get_multiplexed_async_connection().await?;
    let mut truth = Vec::new();
    for number in 0..SESSIONS {
        let name = format!("mooring:owner:{{{}}}", session(number));
        let (node, epoch): (Option<String>, Option<u64>) =
            redis::cmd("HMGET").arg(name).arg("node").arg("epoch").query_async(&mut connection).await?;
        truth.push(node.zip(epoch));
    }
    let mut wrong = String::new();
    let agree = async || {
        for address in addresses {
            for number in 0..SESSIONS {
                let told = look_up(address, session(number)).await;
                let told = told.map(|owner| owner.map(|owner| (owner.node.to_string(), owner.epoch)));
                if told.as_ref().ok() != truth.get(number as usize) {
                    wrong = format!("session {number}: {told:?} and not {:?}", truth.get(number as usize));
                    return false;
                }
            }
        }
        true
    };
    let agreed = wait_until("all agree", agree).await;
    let agreed = agreed.with_context(|| format!("MOORING_MODEL_SEED={seed}: {wrong}"))?;
    println!(
        "{answered} questions, {failed} without an answer, {broken} things broken; all agreed {:.1?} after the end",
        healed.elapsed()
    );
    ensure!(agreed < Duration::from_secs(2) * 2, "MOORING_MODEL_SEED={seed}: they agreed after {agreed:?}");
    ensure!(failed < answered, "nobody was answered");
    Ok(())
}

//! Redis fails in every way that people's Redis fails, while people work.

use harness::redis_servers::{Cluster, Remote, Server, Watched};

use super::*;

/// How many work all the time, and how long each waits between two requests.
const PEOPLE: usize = 36;
const PAUSE: Duration = Duration::from_millis(50);
/// Sessions that must be claimed and found at once before the directory counts as well again: in a cluster
/// some of them are on each server.
const TRIED: u64 = 30;

/// People who work before an Envoy, and one more who logs in now and then.
struct Show {
    stack: Stack,
    crowd: Crowd,
    newcomers: tokio::task::JoinHandle<Result<Vec<Person>>>,
    stop: Arc<AtomicBool>,
}

impl Show {
    /// Opens on a store. Somebody logs in every `every`.
    async fn open(store: &str, every: Duration) -> Result<Self> {
        let sidecar_args = ["--probe-interval-ms", "200", "--store", store].map(str::to_owned).to_vec();
        // One thread of Envoy, so that whoever is remembered is remembered for all.
        let stack = Stack::start(Options { sidecar_args, concurrency: 1, ..Options::default() }).await?;
        let connections = browser::http1();
        let people = for_each(PEOPLE, async |number| {
            let mut person = Person::log_in(stack.browser(&connections), format!("user{number}")).await?;
            person.works().await?;
            Ok(person)
        })
        .await?;
        let crowd = Crowd::start(people, PAUSE);
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, newcomer) = (Arc::clone(&stop), stack.browser(&connections));
        let newcomers = tokio::spawn(async move {
            let mut people = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let mut person = Person::log_in(newcomer.clone(), format!("late{}", people.len())).await?;
                person.works().await?;
                people.push(person);
                tokio::time::sleep(every).await;
            }
            Ok(people)
        });
        tokio::time::sleep(Duration::from_millis(500)).await;
        Ok(Self { stack, crowd, newcomers, stop })
    }

    /// How long it takes from now on until everything can be claimed and found.
    async fn recover(&self) -> Result<Duration> {
        let http = browser::http1();
        let works = async |number: u64| -> Result<()> {
            let key = SessionKey::of_session_id(&rand::random::<u64>().wrapping_add(number).to_be_bytes());
            let claim = wire::encode(&Claim {
                key,
                node: NodeId::new("odoo-1")?,
                expect: 0,
                origin: wire::Origin::Visit,
            });
            let uri = format!("http://{}/v1/claims", self.stack.sidecar_address);
            let answer =
                browser::send(&http, Request::post(uri).body(Full::new(Bytes::from(claim)))?).await?;
            ensure!(answer.status == 200, "{}", answer.text());
            Ok(())
        };
        let all = async || futures::future::try_join_all((0..TRIED).map(works)).await.is_ok();
        wait_until("the directory works again", all).await
    }

    /// Ends it: nobody had a request that failed or moved, and Redis knows everybody.
    async fn close(mut self, what: &str) -> Result<()> {
        // Filters hear of it and ask anew.
        tokio::time::sleep(Duration::from_secs(2)).await;
        self.stop.store(true, Ordering::Relaxed);
        let (requests, slowest) = (self.crowd.requests(), self.crowd.slowest());
        let newcomers = self.newcomers.await?.with_context(|| format!("a newcomer: {what}"))?;
        let late = newcomers.len();
        let mut people = self.crowd.stop().await.with_context(|| what.to_owned())?;
        people.extend(newcomers);
        let failed = self.stack.envoy.stat("wasmcustom.mooring_claims_dropped").await?;
        ensure!(failed == 0, "claims were dropped");
        println!(
            "{what}: {requests} requests of {PEOPLE} people and {late} logins, none failed or moved, the slowest in \
             {slowest:.0?}"
        );
        // What Redis lost is put back when it is asked for.
        for person in &mut people {
            person.works().await.context("afterwards")?;
        }
        let sidecar = self.stack.sidecar.take().context("no sidecar")?;
        ensure!(sidecar.terminate()?.success(), "the sidecar failed");
        self.stack.start_sidecar().await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        for person in &mut people {
            person.works().await.context("after a restart of the sidecar")?;
        }
        Ok(())
    }
}

#[tokio::test]
async fn redis_comes_back_empty() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let redis = Server::start(folder.path(), "").await?;
    let address = redis.address;
    let show = Show::open(&format!("redis://{address}/0"), Duration::from_millis(200)).await?;
    redis.kill();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let _redis = Server::start_at(address, folder.path(), "").await?;
    let recovered = show.recover().await?;
    show.close(&format!("Redis killed, and back empty after 2 s; used again {recovered:.1?} after")).await
}

#[tokio::test]
async fn sentinel_promotes_the_replica() -> Result<()> {
    let mut redis = Watched::start().await?;
    let show = Show::open(&redis.url(), Duration::from_millis(200)).await?;
    redis.master.take().context("no master")?.kill();
    let recovered = show.recover().await?;
    show.close(&format!("Sentinel failover; used again {recovered:.1?} after the master's end")).await
}

#[tokio::test]
async fn a_cluster_loses_a_server_and_promotes_its_replica() -> Result<()> {
    let mut redis = Cluster::start().await?;
    // The one on which the changes are.
    let place = redis.replicate_holder("{directory}").await?;
    let show = Show::open(&redis.url(), Duration::from_millis(200)).await?;
    redis.servers.remove(place).kill();
    let recovered = show.recover().await?;
    show.close(&format!("Cluster lost a server; used again {recovered:.1?} after its end")).await
}

#[tokio::test]
async fn a_cluster_is_resharded() -> Result<()> {
    let redis = Cluster::start().await?;
    let show = Show::open(&redis.url(), Duration::from_millis(50)).await?;
    let began = Instant::now();
    let (_, from) = redis.slot("{directory}").await?;
    let (to, source) = ((from + 1) % 3, &redis.servers[from]);
    let (mut slots, mut keys) = (0, 0);
    for _ in 0..100 {
        let Some(key) = source.run::<Option<String>>("RANDOMKEY").await? else { break };
        let (slot, _) = redis.slot(&key).await?;
        keys += redis.move_slot(slot, from, to, async || ()).await?;
        slots += 1;
    }
    let resharded = began.elapsed();
    let recovered = show.recover().await?;
    let what = format!("{slots} slots of a Cluster moved with {keys} keys in {resharded:.1?}");
    show.close(&format!("{what}; used again {recovered:.1?} after")).await
}

#[tokio::test]
async fn the_cable_to_redis_is_pulled_for_ten_seconds() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let redis = match Remote::start(folder.path()).await {
        Ok(redis) => redis,
        Err(error) => {
            harness::say(&format!("SKIPPED: no network namespace for Redis can be made: {error:#}"));
            return Ok(());
        }
    };
    let show = Show::open(&redis.url(), Duration::from_millis(200)).await?;
    let before = show.crowd.requests();
    redis.host.unplug()?;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let without = show.crowd.requests() - before;
    redis.host.plug()?;
    let recovered = show.recover().await?;
    let what = format!("the cable to Redis pulled for 10 s, {without} requests in them");
    show.close(&format!("{what}; used again {recovered:.1?} after")).await
}

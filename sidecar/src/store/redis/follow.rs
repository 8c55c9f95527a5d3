//! Following a stream, and knowing when some of it may have been missed.

use std::time::{Duration, Instant};

use affinity::{
    NodeId,
    wire::{Change, Owner},
};
use redis::{
    AsyncCommands, ErrorKind, RedisResult, ServerErrorKind,
    streams::{StreamId, StreamReadOptions, StreamReadReply},
};
use tokio::sync::mpsc;

use super::{
    keys::{Keys, Stream},
    link::{Connection, Link, PATIENCE, said},
    pause::Pause,
    scripts::PLACE,
};
use crate::lasting::Lasting;
use crate::store::{CopyEvent, Event, News};

/// How long one read of the stream waits, and how often the store is looked at meanwhile.
const READ_WAIT: Duration = Duration::from_millis(1_000);
/// Entries read at once.
const READ_MOST: usize = 1_000;

/// What the store is: continuity can be proven only within one.
#[derive(Clone, PartialEq, Eq)]
struct Incarnation {
    /// The processes that hold it. None where Redis does not tell: then nothing can be proven.
    processes: Option<Vec<String>>,
    generation: String,
}

/// How far the changes were followed.
struct Place {
    of: Incarnation,
    /// The last change seen: they are numbered.
    told: u64,
    /// Its id in the stream.
    id: String,
}

/// What a stream's entries are read as.
pub(super) trait Entry: Sized {
    /// Entries may have been missed.
    const LOST: Self;
    /// What cannot be done without them, for the log.
    const FOLLOWING: &str;

    /// Which of the streams.
    fn stream(keys: &Keys) -> &Stream;

    fn read(entry: &StreamId) -> Option<Self>;
}

impl Entry for Event {
    const LOST: Self = Self::Lost;
    const FOLLOWING: &str = "following changes in Redis";

    fn stream(keys: &Keys) -> &Stream {
        &keys.changes
    }

    fn read(entry: &StreamId) -> Option<Self> {
        if entry.contains_key("nodes") {
            return Some(Self::Nodes);
        }
        let key = entry.get::<String>("key")?.parse().ok()?;
        let node = NodeId::new(entry.get::<String>("node")?).ok()?;
        Some(Self::Changed(Change { key, owner: Some(Owner { node, epoch: entry.get("epoch")? }) }))
    }
}

impl Entry for CopyEvent {
    const LOST: Self = Self::Lost;
    const FOLLOWING: &str = "following copies in Redis";

    fn stream(keys: &Keys) -> &Stream {
        &keys.copies
    }

    fn read(entry: &StreamId) -> Option<Self> {
        let key = entry.get::<String>("key")?.parse().ok()?;
        let node = |name: &str| entry.get::<String>(name).and_then(|node| NodeId::new(node).ok());
        let news = match (node("published"), node("wanted")) {
            (Some(by), _) => News::Published(by),
            (None, Some(by)) => News::Wanted(by),
            (None, None) => News::Ended,
        };
        Some(Self::Of(key, news))
    }
}

/// Tells a stream's entries until the receiver is gone.
pub(super) async fn follow<E: Entry>(link: &Link, keys: &Keys, events: &mpsc::Sender<E>) {
    let (mut place, mut trouble) =
        (None, Trouble { fault: Lasting::new(E::FOLLOWING), pause: Pause::default() });
    while !events.is_closed() {
        if let Err(error) = follow_once(link, keys, events, &mut place, &mut trouble).await {
            trouble.fault.failed(said(&error));
            tokio::time::sleep(trouble.pause.failed(Instant::now())).await;
        }
    }
}

/// What went wrong, and when to try again.
struct Trouble {
    fault: Lasting,
    pause: Pause,
}

/// Tells changes until something fails.
async fn follow_once<E: Entry>(
    link: &Link,
    keys: &Keys,
    events: &mpsc::Sender<E>,
    place: &mut Option<Place>,
    trouble: &mut Trouble,
) -> RedisResult<()> {
    let mut connection = link.connect(READ_WAIT + PATIENCE).await?;
    let options = StreamReadOptions::default().block(READ_WAIT.as_millis() as usize).count(READ_MOST);
    let (mut looked, mut idle) = (None::<Instant>, false);
    while !events.is_closed() {
        if idle || looked.is_none_or(|when| when.elapsed() > READ_WAIT) {
            let present = look(link, keys, E::stream(keys), &mut connection).await?;
            // What is told but was not there to be read when nothing else was is gone.
            let is_missing = |known: &Place| idle && looked.is_some() && present.told != known.told;
            let goes_on = place.as_ref().is_some_and(|known| {
                known.of.processes.is_some()
                    && known.of == present.of
                    && known.told <= present.told
                    && !is_missing(known)
            });
            if !goes_on {
                *place = Some(present);
                if events.send(E::LOST).await.is_err() {
                    return Ok(());
                }
            }
            let now = Instant::now();
            looked = Some(now);
            trouble.pause.works(now);
            trouble.fault.works();
        }
        let Some(known) = place.as_mut() else { return Ok(()) };
        let reply: Option<StreamReadReply> =
            connection.xread_options(&[&E::stream(keys).entries], &[&known.id], &options).await?;
        idle = reply.is_none();
        for entry in reply.into_iter().flat_map(|reply| reply.keys).flat_map(|stream| stream.ids) {
            let number = entry.get::<u64>("n");
            let event = if number == Some(known.told + 1) { E::read(&entry) } else { None };
            known.told = number.unwrap_or(known.told);
            known.id = entry.id;
            if events.send(event.unwrap_or(E::LOST)).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Where the changes end now.
async fn look(link: &Link, keys: &Keys, stream: &Stream, connection: &mut Connection) -> RedisResult<Place> {
    let processes = match link.identity(connection).await {
        Ok(processes) => Some(processes),
        // An ACL that is narrower than the documented one.
        Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoPerm) => None,
        Err(error) => return Err(error),
    };
    let (generation, told, id): (String, u64, String) = PLACE
        .key(&keys.generation)
        .key(&stream.told)
        .key(&stream.entries)
        .arg(rand::random::<u64>())
        .invoke_async(connection)
        .await?;
    Ok(Place { of: Incarnation { processes, generation }, told, id })
}

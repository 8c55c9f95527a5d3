//! What the hostcalls of one VM see and change.

use std::{collections::BTreeMap, rc::Rc, time::Duration};

use wasmtime::{Memory, TypedFunc};

use crate::{
    abi::{HOSTCALLS, LogLevel, Map, Status},
    faults::Faults,
    headers::Headers,
    world::World,
};

/// The id of the root context.
pub(crate) const ROOT: u32 = 1;

/// A line that the module logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// How urgent it is.
    pub level: LogLevel,
    /// What it says.
    pub message: String,
}

/// A request of the module to a cluster, to be answered by the test.
#[derive(Clone, Debug)]
pub struct Call {
    /// What to answer it by.
    pub token: u32,
    /// The cluster that it goes to.
    pub cluster: String,
    /// Its headers, `:path` and the like among them.
    pub headers: Headers,
    /// Its body.
    pub body: Vec<u8>,
    /// How long Envoy would wait for the answer.
    pub timeout: Duration,
    /// The stream, or the root context (1), that was running.
    pub context: u32,
}

impl Call {
    /// Its `:path`.
    pub fn path(&self) -> String {
        self.headers.get(":path").map(|path| String::from_utf8_lossy(path).into()).unwrap_or_default()
    }
}

/// The answer to a call while the module looks at it. Without headers: the connection was reset.
pub(crate) struct Answer {
    pub(crate) headers: Option<Headers>,
    pub(crate) body: Vec<u8>,
}

/// One of a stream's two header maps.
#[derive(Default)]
pub(crate) struct Side {
    pub(crate) headers: Headers,
    /// Envoy shows a map to the module only until it goes on.
    pub(crate) is_open: bool,
    pub(crate) is_paused: bool,
    pub(crate) resumed: u32,
}

#[derive(Default)]
pub(crate) struct StreamState {
    pub(crate) request: Side,
    pub(crate) response: Side,
    pub(crate) source_address: Option<Vec<u8>>,
}

pub(crate) struct State {
    pub(crate) world: Rc<World>,
    /// Of the instance; there once it is.
    pub(crate) memory: Option<Memory>,
    pub(crate) allocate: Option<TypedFunc<u32, u32>>,
    pub(crate) configuration: Vec<u8>,
    /// The context that Envoy called, and the one that the module chose to speak for (0: the same).
    pub(crate) current: u32,
    pub(crate) effective: u32,
    pub(crate) streams: BTreeMap<u32, StreamState>,
    pub(crate) calls: BTreeMap<u32, Call>,
    pub(crate) last_token: u32,
    /// How many calls were made in all.
    pub(crate) calls_made: u64,
    pub(crate) answer: Option<Answer>,
    /// What every call to a cluster is refused with, if it is.
    pub(crate) refusal: Option<Status>,
    pub(crate) logs: Vec<LogLine>,
    pub(crate) tick_period: Option<Duration>,
    pub(crate) counts: [u64; HOSTCALLS.len()],
    pub(crate) faults: Option<Faults>,
    /// Time spent in hostcalls, if it is measured.
    pub(crate) spent: Option<Duration>,
    /// A buffer that is not allocated for each call.
    pub(crate) scratch: Vec<u8>,
}

impl State {
    pub(crate) fn new(world: Rc<World>, configuration: Vec<u8>) -> Self {
        Self {
            world,
            memory: None,
            allocate: None,
            configuration,
            current: 0,
            effective: 0,
            streams: BTreeMap::new(),
            calls: BTreeMap::new(),
            last_token: 0,
            calls_made: 0,
            answer: None,
            refusal: None,
            logs: Vec::new(),
            tick_period: None,
            counts: [0; HOSTCALLS.len()],
            faults: None,
            spent: None,
            scratch: Vec::new(),
        }
    }

    /// Whether Envoy still has a context.
    pub(crate) fn knows(&self, context: u32) -> bool {
        context == ROOT || self.streams.contains_key(&context)
    }

    /// The context that the module speaks for. As in Envoy, one that is gone is ignored.
    pub(crate) fn speaker(&self) -> u32 {
        if self.effective != 0 && self.knows(self.effective) { self.effective } else { self.current }
    }

    /// A header map that the module may read now.
    pub(crate) fn map(&self, map: Map) -> Option<&Headers> {
        if map == Map::CallResponse {
            return self.answer.as_ref()?.headers.as_ref();
        }
        let stream = self.streams.get(&self.speaker())?;
        let side = if map == Map::Request { &stream.request } else { &stream.response };
        side.is_open.then_some(&side.headers)
    }

    /// A header map that the module may change now.
    pub(crate) fn map_mut(&mut self, map: Map) -> Option<&mut Headers> {
        let stream = self.streams.get_mut(&self.speaker())?;
        let side = match map {
            Map::Request => &mut stream.request,
            Map::Response => &mut stream.response,
            Map::CallResponse => return None,
        };
        side.is_open.then_some(&mut side.headers)
    }
}

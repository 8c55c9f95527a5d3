//! What all VMs of one Envoy have in common: the clock, the shared data, the metrics.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
};

/// The time at which every world begins: 2024-01-01, in nanoseconds since 1970.
const START_NS: u64 = 1_704_067_200_000_000_000;

pub(crate) struct World {
    now_ns: Cell<u64>,
    pub(crate) shared: RefCell<SharedData>,
    pub(crate) metrics: RefCell<Metrics>,
    /// What Envoy hands on of its environment, such as `NAME=value`.
    pub(crate) environment: RefCell<Vec<String>>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            now_ns: Cell::new(START_NS),
            shared: RefCell::default(),
            metrics: RefCell::default(),
            environment: RefCell::default(),
        }
    }

    /// The time; no two readings are the same, as on a real machine.
    pub(crate) fn read_clock(&self) -> u64 {
        let now = self.now_ns.get();
        self.now_ns.set(now + 1);
        now
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.now_ns.get() / 1_000_000
    }

    pub(crate) fn set_now_ms(&self, now_ms: u64) {
        self.now_ns.set(now_ms * 1_000_000);
    }

    pub(crate) fn advance_ms(&self, by: u64) {
        self.now_ns.set(self.now_ns.get() + by * 1_000_000);
    }
}

/// Somebody else replaced the value.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct CasMismatch;

/// Values with the number of their last change, as Envoy keeps them.
#[derive(Default)]
pub(crate) struct SharedData {
    values: HashMap<Vec<u8>, (Vec<u8>, u32)>,
    last_cas: u32,
}

impl SharedData {
    pub(crate) fn get(&self, key: &[u8]) -> Option<(&[u8], u32)> {
        self.values.get(key).map(|(value, cas)| (value.as_slice(), *cas))
    }

    /// Sets a value; with a `cas` that is not 0 only if the value is still that one. As in Envoy, a
    /// `cas` for a key that does not exist is ignored.
    pub(crate) fn set(&mut self, key: &[u8], value: &[u8], cas: u32) -> Result<(), CasMismatch> {
        self.last_cas = self.last_cas.wrapping_add(1).max(1);
        match self.values.get_mut(key) {
            Some((_, present)) if cas != 0 && cas != *present => Err(CasMismatch),
            Some((old, present)) => {
                old.clear();
                old.extend_from_slice(value);
                *present = self.last_cas;
                Ok(())
            }
            None => {
                self.values.insert(key.to_vec(), (value.to_vec(), self.last_cas));
                Ok(())
            }
        }
    }

    pub(crate) fn clear(&mut self) {
        self.values.clear();
    }

    pub(crate) fn keys(&self) -> Vec<String> {
        let mut keys: Vec<_> = self.values.keys().map(|key| String::from_utf8_lossy(key).into()).collect();
        keys.sort();
        keys
    }

    /// The bytes of all keys and values.
    pub(crate) fn bytes(&self) -> usize {
        self.values.iter().map(|(key, (value, _))| key.len() + value.len()).sum()
    }
}

/// Counters and gauges by name.
#[derive(Default)]
pub(crate) struct Metrics {
    ids: BTreeMap<String, u32>,
    values: Vec<Metric>,
}

pub(crate) struct Metric {
    pub(crate) is_counter: bool,
    pub(crate) value: i64,
}

impl Metrics {
    /// The id of a metric; the same for every VM that defines it.
    pub(crate) fn define(&mut self, name: &str, is_counter: bool) -> u32 {
        if let Some(id) = self.ids.get(name) {
            return *id;
        }
        let id = self.values.len() as u32;
        self.ids.insert(name.to_owned(), id);
        self.values.push(Metric { is_counter, value: 0 });
        id
    }

    pub(crate) fn get_mut(&mut self, id: u32) -> Option<&mut Metric> {
        self.values.get_mut(id as usize)
    }

    pub(crate) fn get(&self, name: &str) -> Option<i64> {
        Some(self.values.get(*self.ids.get(name)? as usize)?.value)
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.ids.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_data_is_compared_before_it_is_swapped() {
        let mut data = SharedData::default();
        assert_eq!(data.set(b"k", b"1", 77), Ok(()), "a new key takes any number");
        let (_, first) = data.get(b"k").unwrap();
        assert_eq!(data.set(b"k", b"2", first), Ok(()));
        assert_eq!(data.set(b"k", b"3", first), Err(CasMismatch));
        assert_eq!(data.set(b"k", b"4", 0), Ok(()), "0 asks for nothing");
        let (value, second) = data.get(b"k").unwrap();
        assert!(value == b"4" && second != first);
    }

    #[test]
    fn time_never_stands_still() {
        let world = World::new();
        assert!(world.read_clock() < world.read_clock());
    }
}

//! The values at hand, bounded by their bytes; what went unused goes first.

use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter, sync::Cache, sync::DefaultLifecycle};

use super::wire::{Entry, Family, Generation, Key};

/// What an entry takes beside its value.
const BESIDE: u64 = 512;
/// The least of a part: each must hold the longest value several times.
const PART: u64 = 16 << 20;
/// Families whose generation is known: caches of a database and its code.
const FAMILIES: usize = 4_096;

#[derive(Clone)]
struct Bytes;

impl Weighter<Key, Entry> for Bytes {
    fn weight(&self, _: &Key, entry: &Entry) -> u64 {
        entry.value.len() as u64 + BESIDE
    }
}

pub(super) struct Memory {
    values: Cache<Key, Entry, Bytes>,
    generations: Cache<Family, Generation>,
}

impl Memory {
    /// A memory of `bytes` at most; none if they are too few.
    pub(super) fn new(bytes: u64) -> Option<Self> {
        let parts = usize::try_from((bytes / PART).clamp(1, 16)).ok()?;
        let options = OptionsBuilder::new()
            .shards(if parts.is_power_of_two() { parts } else { parts.next_power_of_two() / 2 })
            .estimated_items_capacity(usize::try_from(bytes / 8_192).ok()?)
            .weight_capacity(bytes)
            .build()
            .ok()?;
        let (hasher, lifecycle) = (DefaultHashBuilder::default(), DefaultLifecycle::default());
        Some(Self {
            values: Cache::with_options(options, Bytes, hasher, lifecycle),
            generations: Cache::new(FAMILIES),
        })
    }

    pub(super) fn get(&self, key: &Key) -> Option<Entry> {
        self.values.get(key)
    }

    pub(super) fn insert(&self, key: Key, entry: Entry) {
        self.values.insert(key, entry);
    }

    /// Notes a family's generation, and drops what is of another one: the keys of that. None if the
    /// generation was known.
    pub(super) fn invalidate(&self, family: Family, generation: Generation) -> Option<Vec<Key>> {
        if self.generations.get(&family) == Some(generation) {
            return None;
        }
        self.generations.insert(family, generation);
        let is_stale = |entry: &Entry| entry.family == family && entry.generation != generation;
        let stale = self.values.iter().filter(|(_, entry)| is_stale(entry));
        let dropped: Vec<Key> = stale.map(|(key, _)| key).collect();
        for key in &dropped {
            self.values.remove(key);
        }
        Some(dropped)
    }

    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.values.weight()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(family: u8, generation: u8, length: usize) -> Entry {
        Entry {
            family: [family; 16],
            generation: [generation; 16],
            cost_us: 1,
            value: vec![0; length].into(),
        }
    }

    fn key(number: u64) -> Key {
        *blake3::hash(&number.to_be_bytes()).as_bytes()
    }

    #[test]
    fn a_flood_stays_within_the_bytes_and_the_longest_values_fit() {
        for mb in [8, 64, 100] {
            let memory = Memory::new(mb << 20).unwrap();
            for number in 0..(mb * 2) {
                memory.insert(key(number), entry(1, 1, 2 << 20));
                assert!(memory.bytes() <= mb << 20, "{} of {mb} MB", memory.bytes());
                assert!(memory.get(&key(number)).is_some(), "value {number} does not fit in {mb} MB");
            }
            assert!(memory.len() > 1);
        }
    }

    #[test]
    fn an_invalidation_frees_what_it_means_and_nothing_else() {
        let memory = Memory::new(8 << 20).unwrap();
        memory.insert(key(1), entry(1, 1, 1_000));
        memory.insert(key(2), entry(1, 2, 1_000));
        memory.insert(key(3), entry(2, 1, 1_000));
        assert_eq!(memory.invalidate([1; 16], [2; 16]), Some(vec![key(1)]));
        assert_eq!(memory.invalidate([1; 16], [2; 16]), None, "it was told before");
        assert_eq!((memory.get(&key(1)), memory.len()), (None, 2));
        assert_eq!(memory.invalidate([1; 16], [3; 16]), Some(vec![key(2)]));
        assert_eq!(memory.bytes(), 1_000 + BESIDE);
    }
}

//! Bounded load: no node takes more than a factor over its fair share of new sessions.
//!
//! Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads" (2016).

/// The most sessions a node of `weight` may hold when there are `total` in all, over nodes whose
/// weights add up to `weights`: ⌈factor · total · weight / weights⌉. `factor` is at least 1.
pub fn capacity(total: u64, weight: u16, weights: u32, factor: f64) -> u64 {
    let fair = total as f64 * f64::from(weight) / f64::from(weights.max(1));
    libm::ceil(fair * factor.max(1.0)) as u64
}

/// The place of the first node in `ranking` with room for one more session; the best-ranked one
/// if none has room, which no factor of at least 1 allows while all nodes are ranked.
///
/// `loads` gives each place its sessions now and its weight.
pub fn first_with_room(ranking: &[usize], loads: &[(u64, u16)], factor: f64) -> Option<usize> {
    let ranked = || ranking.iter().filter_map(|place| loads.get(*place).map(|load| (*place, load)));
    let total = ranked().map(|(_, load)| load.0).sum::<u64>() + 1;
    let weights = ranked().map(|(_, load)| u32::from(load.1)).sum();
    ranked()
        .find(|(_, (sessions, weight))| *sessions < capacity(total, *weight, weights, factor))
        .map(|(place, _)| place)
        .or_else(|| ranking.first().copied())
}

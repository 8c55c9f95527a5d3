//! Bounded load: no node takes more than a factor over its fair share of new sessions.
//!
//! Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads" (2016).

/// The most sessions a node of `weight` may hold when there are `total` in all, over nodes whose
/// weights add up to `weights`: ⌈factor · total · weight / weights⌉. `factor` is at least 1.
pub fn capacity(total: u64, weight: u16, weights: u32, factor: f64) -> u64 {
    let fair = total as f64 * f64::from(weight) / f64::from(weights.max(1));
    libm::ceil(fair * factor.max(1.0)) as u64
}

/// Whether a node of `weight` that holds `sessions` of `total` in all has room for one more; the
/// parameters are those of [`capacity`].
pub fn has_room(sessions: u64, total: u64, weight: u16, weights: u32, factor: f64) -> bool {
    sessions < capacity(total + 1, weight, weights, factor)
}

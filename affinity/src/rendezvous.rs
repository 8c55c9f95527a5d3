//! Weighted rendezvous hashing (highest random weight): every party ranks the nodes for a key alike
//! without asking anybody, and a node that joins or leaves moves only its own keys.
//!
//! Thaler and Ravishankar, "A name-based mapping scheme for rendezvous" (1996); the weighted score
//! `-w / ln(u)` is from Schindelhauer and Schomaker, "Weighted distributed hash tables" (2005).

use arrayvec::ArrayVec;

use crate::{Membership, Node, SessionKey};

/// The nodes of `membership` for which `eligible` holds, as places in [`Membership::nodes`], the best
/// for `key` first, `MOST` of them at most. The order of the list of nodes has no influence.
pub fn ranking<const MOST: usize>(
    key: SessionKey,
    membership: &Membership,
    eligible: impl Fn(&Node) -> bool,
) -> ArrayVec<usize, MOST> {
    let mut weights = membership.nodes().iter().map(|node| node.weight);
    let first = weights.next();
    let weighted = weights.any(|weight| Some(weight) != first);
    // No heap: every request comes through here.
    let mut ranked: ArrayVec<(f64, usize), MOST> = ArrayVec::new();
    for (place, (seed, node)) in membership.seeded().enumerate() {
        if eligible(node) {
            // Insertion suits a handful of nodes. Nodes are in the order of their names: among equal
            // scores the first name wins, everywhere.
            let uniform = uniform(key, seed);
            let score = if weighted { score(uniform, node.weight) } else { uniform };
            let rank = ranked.iter().position(|(other, _)| *other < score).unwrap_or(ranked.len());
            if rank < MOST {
                ranked.truncate(MOST - 1);
                // There is room: one place was just made.
                let _ = ranked.try_insert(rank, (score, place));
            }
        }
    }
    ranked.into_iter().map(|(_, place)| place).collect()
}

/// What a key and a node draw together, strictly between 0 and 1. Among nodes of one weight the
/// greatest draw has the greatest score, so the logarithm can be spared.
fn uniform(key: SessionKey, seed: u64) -> f64 {
    let (high, low) = key.halves();
    let hash = mix(mix(high ^ seed) ^ low);
    // 53 bits make a float strictly between 0 and 1, so that its logarithm is finite and not 0.
    ((hash >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
}

/// The score of a node: greater is better, and P(best) is the node's share of all weights.
fn score(uniform: f64, weight: u16) -> f64 {
    // libm and not std: a system's logarithm may differ from wasm's in the last bit.
    f64::from(weight) / -libm::log(uniform)
}

/// The finalizer of splitmix64 (Stafford's variant 13): every input bit reaches every output bit.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

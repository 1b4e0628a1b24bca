//! The bucket plan: which gradients travel together, and in which order. Pure.

use phalanx_autograd::{Buffer, Param};
use phalanx_comm::ProcessGroup;
use phalanx_tensor::{DType, Device, Shape};
use std::collections::HashMap;

/// Elements between the starts of two gradients in a bucket are a multiple of this, so that each
/// starts on a cache line in any element type.
const ALIGN: usize = 64;

/// What the plan needs to know of a parameter or a buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its shape.
    pub shape: Shape,
    /// The element type of what travels, a gradient or a buffer: only those of one type share a
    /// bucket.
    pub dtype: DType,
    /// Its device: only gradients of one device share a bucket.
    pub device: Device,
}

impl Entry {
    /// Of a parameter's value.
    pub fn of(param: &Param) -> Entry {
        Entry {
            shape: param.shape().clone(),
            dtype: param.dtype(),
            device: param.device(),
        }
    }

    /// Of a buffer.
    pub fn of_buffer(buffer: &Buffer) -> Entry {
        Entry {
            shape: buffer.shape().clone(),
            dtype: buffer.dtype(),
            device: buffer.device(),
        }
    }

    /// Of a parameter's gradient.
    pub fn of_gradient(param: &Param) -> Entry {
        Entry {
            shape: param.shape().clone(),
            dtype: param.grad_dtype(),
            device: param.device(),
        }
    }
}

/// One line for each of these things, of some kind and name, the same text on ranks that agree. Ranks have
/// devices of their own; but what shares a device, and so a bucket, must be the same.
pub(crate) fn describe<'n>(things: impl Iterator<Item = (&'n str, &'n str, Entry)>) -> String {
    let mut firsts: HashMap<Device, &str> = HashMap::new();
    let mut text = String::new();
    for (kind, name, entry) in things {
        let Entry {
            shape,
            dtype,
            device,
        } = entry;
        let first = firsts.entry(device).or_insert(name);
        text += &format!("{kind} {name}: {dtype} {shape} on the device of {first}\n");
    }
    text
}

/// A gradient's place in its bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// The parameter, as an index into the list that was planned.
    pub param: usize,
    /// Where its gradient starts, in elements.
    pub offset: usize,
    /// How many elements it has.
    pub numel: usize,
}

/// Gradients that travel together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// The gradients, in the order in which they are expected.
    pub slots: Vec<Slot>,
    /// The element type of all of them.
    pub dtype: DType,
    /// The device of all of them when they were planned; they travel from where they are.
    pub device: Device,
    /// Length of the flat buffer, in elements.
    pub len: usize,
}

impl Bucket {
    /// Whether the bucket is one gradient, which then travels as it is, without a copy into a
    /// flat buffer.
    pub fn is_single(&self) -> bool {
        self.slots.len() == 1
    }

    /// Bytes of the flat buffer.
    pub fn bytes(&self) -> usize {
        self.len * self.dtype.size()
    }
}

/// Byte limits of the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The first bucket of each element type and device closes at this size: small, so that
    /// communication starts early (PyTorch: 1 MiB).
    pub first: usize,
    /// Every other bucket closes at this size (PyTorch's `bucket_cap_mb`: 25 MiB).
    pub cap: usize,
    /// A gradient of this size or more is a bucket of its own and is reduced in place.
    pub single: usize,
}

impl Limits {
    /// The sizes that the engine below `group` likes.
    pub fn liked_by(group: &dyn ProcessGroup) -> Limits {
        let (first, cap) = (1 << 20, 25 << 20); // PyTorch's
        let single = match group.backend() {
            // Each call costs launches on every card, and short ones use a part of the links; a copy
            // within a card is cheap. So only what fills a bucket travels in place.
            "nccl" => cap,
            // A call costs a microsecond or a few, and a copy the same memory that the reduction reads.
            _ => 64 << 10,
        };
        Limits { first, cap, single }
    }
}

/// Assigns sizes to buckets as PyTorch's `_compute_bucket_assignment_by_size` does: in order, one
/// open bucket per key, closed when it reaches the current limit of its key; the first limits are
/// used once each, the last for all the rest. Buckets come in the order of their first member.
///
/// Each returned bucket lists indices into `sizes`, and the limit that applied to it.
pub fn assign<K: PartialEq>(sizes: &[(usize, K)], limits: &[usize]) -> Vec<(Vec<usize>, usize)> {
    struct Open<'a, K> {
        key: &'a K,
        members: Vec<usize>,
        bytes: usize,
        closed: usize,
    }
    let limit = |closed: usize| {
        limits
            .get(closed)
            .or(limits.last())
            .copied()
            .unwrap_or(usize::MAX)
    };
    let mut open: Vec<Open<'_, K>> = Vec::new();
    let mut done = Vec::new();
    for (i, (bytes, key)) in sizes.iter().enumerate() {
        let at = open.iter().position(|o| o.key == key).unwrap_or_else(|| {
            open.push(Open {
                key,
                members: Vec::new(),
                bytes: 0,
                closed: 0,
            });
            open.len() - 1
        });
        let bucket = &mut open[at];
        bucket.members.push(i);
        bucket.bytes = bucket.bytes.saturating_add(*bytes);
        if bucket.bytes >= limit(bucket.closed) {
            done.push((std::mem::take(&mut bucket.members), limit(bucket.closed)));
            bucket.bytes = 0;
            bucket.closed += 1;
        }
    }
    let rest = open.into_iter().filter(|o| !o.members.is_empty());
    done.extend(rest.map(|o| (o.members, limit(o.closed))));
    done.sort_by_key(|(members, _)| members[0]);
    done
}

/// Plans the buckets for gradients that become final in the order of `ready` (indices into
/// `entries`; each exactly once).
///
/// Large gradients are buckets of their own; the small ones between them share, by [`assign`].
/// A bucket's place in the plan is that of its *last* member, since only then it can leave.
pub fn plan(entries: &[Entry], ready: &[usize], limits: Limits) -> Vec<Bucket> {
    let bytes = |p: usize| entries[p].shape.numel() * entries[p].dtype.size();
    let (single, small): (Vec<usize>, Vec<usize>) =
        ready.iter().partition(|&&p| bytes(p) >= limits.single);
    let sizes: Vec<_> = small
        .iter()
        .map(|&p| (bytes(p), (entries[p].dtype, entries[p].device)))
        .collect();
    let shared = assign(&sizes, &[limits.first, limits.cap])
        .into_iter()
        .map(|(members, _)| members.into_iter().map(|i| small[i]).collect());
    let mut groups: Vec<Vec<usize>> = single.into_iter().map(|p| vec![p]).chain(shared).collect();
    let mut position = vec![0; entries.len()];
    ready.iter().enumerate().for_each(|(i, &p)| position[p] = i);
    groups.sort_by_key(|members| members.last().map(|&p| position[p]));
    groups
        .into_iter()
        .map(|members| {
            let mut len = 0usize;
            let first = &entries[members[0]];
            let last = members.len() - 1;
            let mut slots = Vec::with_capacity(members.len());
            for (i, param) in members.into_iter().enumerate() {
                let numel = entries[param].shape.numel();
                slots.push(Slot {
                    param,
                    offset: len,
                    numel,
                });
                len += if i == last {
                    numel
                } else {
                    numel.next_multiple_of(ALIGN)
                };
            }
            Bucket {
                slots,
                dtype: first.dtype,
                device: first.device,
                len,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(serde::Deserialize)]
    struct Golden {
        numel: Vec<usize>,
        dtype: Vec<String>,
        limits_bytes: Vec<usize>,
        buckets: Vec<Vec<usize>>,
        per_bucket_limits: Vec<usize>,
    }

    #[test]
    fn assignment_is_pytorchs() {
        let rows: Vec<Golden> =
            serde_json::from_str(include_str!("../../tests/golden/bucket_assignment.json"))
                .unwrap();
        assert!(rows.len() >= 80);
        for row in rows {
            let sizes: Vec<(usize, DType)> = row
                .numel
                .iter()
                .zip(&row.dtype)
                .map(|(n, d)| (d.parse().unwrap(), n))
                .map(|(d, n): (DType, _)| (n * d.size(), d))
                .collect();
            let (buckets, limits): (Vec<_>, Vec<_>) =
                assign(&sizes, &row.limits_bytes).into_iter().unzip();
            assert_eq!((buckets, limits), (row.buckets, row.per_bucket_limits));
        }
    }

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let dtype = prop::sample::select(vec![DType::F32, DType::F64, DType::BF16]);
        let entry = (0usize..3000, dtype, 0usize..2).prop_map(|(n, dtype, d)| Entry {
            shape: n.into(),
            dtype,
            device: Device::cpu(d),
        });
        prop::collection::vec(entry, 0..40)
    }

    proptest! {
        #[test]
        fn every_gradient_has_one_place(
            entries in entries(),
            keys in prop::collection::vec(any::<u32>(), 40),
            first in 0usize..10_000, cap in 0usize..20_000, single in 0usize..20_000,
        ) {
            let mut ready: Vec<usize> = (0..entries.len()).collect();
            ready.sort_by_key(|&p| keys[p]);
            let buckets = plan(&entries, &ready, Limits { first, cap, single });
            let mut seen = vec![0; entries.len()];
            let mut last_position = None;
            for bucket in &buckets {
                let mut end = 0;
                for slot in &bucket.slots {
                    let entry = &entries[slot.param];
                    seen[slot.param] += 1;
                    prop_assert_eq!((entry.dtype, entry.device), (bucket.dtype, bucket.device));
                    prop_assert!(slot.offset >= end && slot.offset % ALIGN == 0);
                    prop_assert_eq!(slot.numel, entry.shape.numel());
                    end = slot.offset + slot.numel;
                }
                prop_assert_eq!(end, bucket.len);
                if !bucket.is_single() {
                    let without_last: usize = bucket.slots[..bucket.slots.len() - 1]
                        .iter()
                        .map(|s| entries[s.param].shape.numel() * bucket.dtype.size())
                        .sum();
                    prop_assert!(without_last < first.max(cap), "closed at its limit");
                }
                let position = bucket.slots.iter().map(|s| ready.iter().position(|&p| p == s.param)).max();
                prop_assert!(position > last_position, "buckets leave in the order in which they fill");
                last_position = position;
            }
            prop_assert!(seen.iter().all(|&n| n == 1));
        }
    }
}

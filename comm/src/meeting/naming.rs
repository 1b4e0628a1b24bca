//! Who is in a group that is split off, and what it is called.

use crate::membership::Membership;

/// What a rank says of itself when its group is split: its color, or a negative number for none; its key; and whether its
/// cards are ready to be split from those of the others (1), so that they need not find each other anew.
pub(crate) type Choice = [i64; 3];

/// Whether the cards of all ranks are ready.
pub(crate) fn all_ready(choices: &[Choice]) -> bool {
    choices.iter().all(|[_, _, ready]| *ready == 1)
}

/// The ranks of the old group that make a new one together with rank `me`, in the order of the new one: of its color,
/// by key, then by rank. `None` where it takes no part.
pub(crate) fn members(choices: &[Choice], me: usize) -> Option<Vec<usize>> {
    let [color, ..] = choices[me];
    if color < 0 {
        return None;
    }
    let mut members: Vec<usize> = (0..choices.len())
        .filter(|&rank| choices[rank][0] == color)
        .collect();
    members.sort_by_key(|&rank| choices[rank][1]); // stable: then by rank
    Some(members)
}

/// The new group of `members` of the old one, by its collective `number`, with this `color`: for the member that
/// `old` is.
pub(crate) fn split_off(
    old: &Membership,
    number: u64,
    color: u32,
    members: &[usize],
) -> Option<Membership> {
    Some(Membership {
        rank: members.iter().position(|&rank| rank == old.rank)?,
        world_ranks: members.iter().map(|&rank| old.world_ranks[rank]).collect(),
        name: format!("{}/{number}:{color}", old.name).into(),
        ..old.clone()
    })
}

/// The same number on all ranks for a group of this name in an epoch: FNV-1a. Names are unique, since they tell
/// which collective split the group off; that two of them meet in 64 bits is not to be expected.
pub(crate) fn group_id(epoch: u64, name: &str) -> u64 {
    let bytes = epoch.to_le_bytes().into_iter().chain(name.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_tensor::Device;
    use std::time::Duration;

    #[test]
    fn members_stand_by_color_then_key_then_rank() {
        let choices = [[1, 5, 1], [0, 0, 0], [1, -3, 1], [-1, 0, 1], [1, 5, 1]];
        assert_eq!(members(&choices, 0), Some(vec![2, 0, 4]));
        assert_eq!(members(&choices, 2), Some(vec![2, 0, 4]));
        assert_eq!(members(&choices, 1), Some(vec![1]));
        assert_eq!(members(&choices, 3), None);
        assert!(!all_ready(&choices));
        assert!(all_ready(&choices[2..]));
    }

    #[test]
    fn a_name_tells_where_a_group_comes_from() {
        let old = Membership {
            rank: 2,
            world_ranks: [4, 6, 8].into(),
            name: "world/3:1".into(),
            device: Device::cpu(8),
            deadline: Duration::from_secs(1),
        };
        let new = split_off(&old, 7, 9, &[2, 0]).unwrap();
        assert_eq!((&*new.name, new.rank), ("world/3:1/7:9", 0));
        assert_eq!(*new.world_ranks, [8, 4]);
        assert!(split_off(&old, 7, 9, &[0, 1]).is_none());
    }

    #[test]
    fn groups_differ() {
        assert_ne!(group_id(0, "world"), group_id(0, "world/0:0"));
        assert_ne!(group_id(0, "world/0:0"), group_id(0, "world/0:1"));
        assert_ne!(group_id(0, "world"), group_id(1, "world"));
    }
}

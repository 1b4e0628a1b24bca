//! Types of elements, and sums and the like over the ranks, in an order that the seed turns.

use half::{bf16, f16};

/// A type of elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// `ncclInt8`.
    I8,
    /// `ncclUint8`.
    U8,
    /// `ncclInt32`.
    I32,
    /// `ncclUint32`.
    U32,
    /// `ncclInt64`.
    I64,
    /// `ncclUint64`.
    U64,
    /// `ncclFloat16`.
    F16,
    /// `ncclFloat32`.
    F32,
    /// `ncclFloat64`.
    F64,
    /// `ncclBfloat16`.
    BF16,
}

impl Data {
    const ALL: [Data; 10] = [
        Data::I8,
        Data::U8,
        Data::I32,
        Data::U32,
        Data::I64,
        Data::U64,
        Data::F16,
        Data::F32,
        Data::F64,
        Data::BF16,
    ];

    /// The type of this number.
    pub fn of(number: u32) -> Option<Data> {
        Data::ALL.get(number as usize).copied()
    }

    /// Bytes of an element.
    pub fn size(self) -> u64 {
        match self {
            Data::I8 | Data::U8 => 1,
            Data::F16 | Data::BF16 => 2,
            Data::I32 | Data::U32 | Data::F32 => 4,
            Data::I64 | Data::U64 | Data::F64 => 8,
        }
    }

    /// What NCCL calls it.
    pub fn name(self) -> &'static str {
        match self {
            Data::I8 => "ncclInt8",
            Data::U8 => "ncclUint8",
            Data::I32 => "ncclInt32",
            Data::U32 => "ncclUint32",
            Data::I64 => "ncclInt64",
            Data::U64 => "ncclUint64",
            Data::F16 => "ncclFloat16",
            Data::F32 => "ncclFloat32",
            Data::F64 => "ncclFloat64",
            Data::BF16 => "ncclBfloat16",
        }
    }
}

/// A reduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// `ncclSum`.
    Sum,
    /// `ncclProd`.
    Prod,
    /// `ncclMax`.
    Max,
    /// `ncclMin`.
    Min,
    /// `ncclAvg`: the sum, divided by the number of ranks.
    Avg,
}

impl Reduction {
    /// The reduction of this number.
    pub fn of(number: u32) -> Option<Reduction> {
        let all = [
            Reduction::Sum,
            Reduction::Prod,
            Reduction::Max,
            Reduction::Min,
            Reduction::Avg,
        ];
        all.get(number as usize).copied()
    }

    /// What NCCL calls it.
    pub fn name(self) -> &'static str {
        match self {
            Reduction::Sum => "ncclSum",
            Reduction::Prod => "ncclProd",
            Reduction::Max => "ncclMax",
            Reduction::Min => "ncclMin",
            Reduction::Avg => "ncclAvg",
        }
    }
}

/// In what a reduction computes.
trait Number: Copy {
    fn add(self, other: Self) -> Self;
    fn multiply(self, other: Self) -> Self;
    fn larger(self, other: Self) -> Self;
    fn smaller(self, other: Self) -> Self;
    fn divide(self, count: usize) -> Self;
}

macro_rules! integers {
    ($($type:ident)*) => {$(
        impl Number for $type {
            fn add(self, other: $type) -> $type {
                self.wrapping_add(other)
            }
            fn multiply(self, other: $type) -> $type {
                self.wrapping_mul(other)
            }
            fn larger(self, other: $type) -> $type {
                self.max(other)
            }
            fn smaller(self, other: $type) -> $type {
                self.min(other)
            }
            fn divide(self, count: usize) -> $type {
                self / count as $type
            }
        }
    )*};
}
integers! { i8 u8 i32 u32 i64 u64 }

macro_rules! floats {
    ($($type:ident)*) => {$(
        impl Number for $type {
            fn add(self, other: $type) -> $type {
                self + other
            }
            fn multiply(self, other: $type) -> $type {
                self * other
            }
            fn larger(self, other: $type) -> $type {
                self.max(other)
            }
            fn smaller(self, other: $type) -> $type {
                self.min(other)
            }
            fn divide(self, count: usize) -> $type {
                self / count as $type
            }
        }
    )*};
}
floats! { f32 f64 }

/// How one call adds up. All ranks of a call have the same turn, and so the same bits.
#[derive(Clone, Copy, Debug)]
pub struct Turn(pub u64);

impl Turn {
    /// The ranks, in the order in which their elements are taken: another one for each piece of the data, as where
    /// pieces go round a ring.
    fn order(self, ranks: usize, piece: usize) -> impl Iterator<Item = usize> {
        let start = (self.0 >> 8) as usize + piece;
        let backwards = self.0 & 1 == 1;
        (0..ranks).map(move |at| match backwards {
            false => (start + at) % ranks,
            true => (start + ranks - at) % ranks,
        })
    }

    /// Whether halves are rounded after each step, and not only at the end.
    fn is_narrow(self) -> bool {
        self.0 & 2 == 2
    }
}

/// How many elements are taken in the same order.
const PIECE: usize = 64;

/// Reduces what the ranks give, which all have the same length.
pub fn reduce(data: Data, reduction: Reduction, turn: Turn, ranks: &[&[u8]]) -> Vec<u8> {
    macro_rules! over {
        ($type:ident) => {
            fold(
                ranks,
                reduction,
                turn,
                $type::from_le_bytes,
                |v| v,
                |v: $type| v.to_le_bytes(),
            )
        };
    }
    macro_rules! halves {
        ($type:ident) => {{
            let narrow = turn.is_narrow();
            fold(
                ranks,
                reduction,
                turn,
                |bytes| $type::from_le_bytes(bytes).to_f32(),
                move |v| match narrow {
                    true => $type::from_f32(v).to_f32(),
                    false => v,
                },
                |v: f32| $type::from_f32(v).to_le_bytes(),
            )
        }};
    }
    match data {
        Data::I8 => over!(i8),
        Data::U8 => over!(u8),
        Data::I32 => over!(i32),
        Data::U32 => over!(u32),
        Data::I64 => over!(i64),
        Data::U64 => over!(u64),
        Data::F32 => over!(f32),
        Data::F64 => over!(f64),
        Data::F16 => halves!(f16),
        Data::BF16 => halves!(bf16),
    }
}

fn fold<const SIZE: usize, N: Number>(
    ranks: &[&[u8]],
    reduction: Reduction,
    turn: Turn,
    load: impl Fn([u8; SIZE]) -> N,
    round: impl Fn(N) -> N,
    store: impl Fn(N) -> [u8; SIZE],
) -> Vec<u8> {
    let len = ranks.first().map_or(0, |first| first.len());
    let mut result = Vec::with_capacity(len);
    let mut order = Vec::new();
    for at in 0..len / SIZE {
        if at % PIECE == 0 {
            order.clear();
            order.extend(turn.order(ranks.len(), at / PIECE));
        }
        let element = |rank: &usize| {
            let mut bytes = [0; SIZE];
            bytes.copy_from_slice(&ranks[*rank][at * SIZE..(at + 1) * SIZE]);
            load(bytes)
        };
        let mut all = order.iter().map(element);
        let Some(first) = all.next() else {
            return result;
        };
        let sum = all.fold(first, |sum, v| {
            round(match reduction {
                Reduction::Sum | Reduction::Avg => sum.add(v),
                Reduction::Prod => sum.multiply(v),
                Reduction::Max => sum.larger(v),
                Reduction::Min => sum.smaller(v),
            })
        });
        let value = match reduction {
            Reduction::Avg => sum.divide(ranks.len()),
            _ => sum,
        };
        result.extend(store(value));
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(ranks: &[f32], turn: u64) -> f32 {
        let bytes: Vec<_> = ranks.iter().map(|v| v.to_le_bytes()).collect();
        let bytes: Vec<&[u8]> = bytes.iter().map(|bytes| &bytes[..]).collect();
        let sum = reduce(Data::F32, Reduction::Sum, Turn(turn), &bytes);
        f32::from_le_bytes(sum.try_into().unwrap())
    }

    #[test]
    fn the_turn_changes_the_order_of_a_sum() {
        let ranks = [1e8, 1.0, -1e8, 3.0];
        let sums: Vec<f32> = (0..8)
            .map(|turn| floats(&ranks, turn << 8 | turn & 1))
            .collect();
        assert!(sums.iter().any(|sum| *sum != sums[0]), "{sums:?}");
    }

    #[test]
    fn each_rank_is_taken_once() {
        for turn in [0, 1, 0x4201, 0xffff_ffff_ffff_ffff] {
            for piece in 0..5 {
                let mut order: Vec<_> = Turn(turn).order(4, piece).collect();
                order.sort_unstable();
                assert_eq!(order, [0, 1, 2, 3]);
            }
        }
    }

    #[test]
    fn integers_wrap_and_divide() {
        let ranks: [&[u8]; 2] = [&[200], &[100]];
        let one = |reduction| reduce(Data::U8, reduction, Turn(0), &ranks)[0];
        assert_eq!(one(Reduction::Sum), 44);
        assert_eq!(one(Reduction::Avg), 22);
        assert_eq!(one(Reduction::Max), 200);
        assert_eq!(one(Reduction::Min), 100);
        assert_eq!(one(Reduction::Prod), 32);
        let signed = reduce(Data::I8, Reduction::Max, Turn(0), &ranks)[0];
        assert_eq!(signed, 100, "200 is -56 there");
    }
}

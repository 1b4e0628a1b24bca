//! The order in which blocks and threads run, by a seed.

/// Numbers below `count` in an order of their own: a start and a stride.
#[derive(Debug, Clone, Copy)]
pub struct Order {
    pub start: u64,
    pub stride: u64,
    pub count: u64,
}

impl Order {
    /// An order that `seed` decides; 0 is that of the numbers themselves.
    pub fn new(count: u64, seed: u64) -> Order {
        let mix = |value: u64| {
            let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            value ^ value >> 31
        };
        if seed == 0 || count < 2 {
            return Order {
                start: 0,
                stride: 1,
                count,
            };
        }
        let gcd = |mut a: u64, mut b: u64| {
            while b != 0 {
                (a, b) = (b, a % b);
            }
            a
        };
        let mut stride = mix(seed) % count;
        while gcd(stride, count) != 1 {
            stride = (stride + 1) % count;
        }
        Order {
            start: mix(seed ^ 0x9e37_79b9_7f4a_7c15) % count,
            stride,
            count,
        }
    }

    /// The number at place `index`.
    pub fn at(self, index: u64) -> u64 {
        ((u128::from(index) * u128::from(self.stride) + u128::from(self.start))
            % u128::from(self.count)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::Order;

    #[test]
    fn every_number_comes_once() {
        for (count, seed) in [(1, 5), (2, 5), (12, 1), (256, 2), (1000, 3)] {
            let order = Order::new(count, seed);
            let mut all: Vec<u64> = (0..count).map(|index| order.at(index)).collect();
            all.sort_unstable();
            assert!(all.into_iter().eq(0..count), "{order:?}");
        }
    }
}

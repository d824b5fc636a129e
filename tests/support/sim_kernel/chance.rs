//! The simulation's only source of chance, and what it does to the kernel.

/// What goes wrong, in per mille.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub op_fails: u32,
    pub read_fails: u32,
    pub event_lost: u32,
    pub event_late: u32,
    /// A dump leaves a row out without a word.
    pub row_skipped: u32,
}

/// A small generator.
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    pub fn per_mille(&mut self, n: u32) -> bool {
        (self.next() % 1000) < u64::from(n)
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        from.get(self.below(from.len()))
    }
}

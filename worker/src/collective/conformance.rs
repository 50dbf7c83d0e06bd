//! What every implementation of [`Collective`] does, as one suite: an implementation hands in its ranks.

use half::bf16;
use shared::keyed_random::KeyedRandom;

use std::time::{Duration, Instant};

use super::{Alone, Collective, Numbers, Op, shard};
use crate::error::{Error, Result};

/// Lengths around the borders of shards, of what one write holds, and of segments; the last ones take several.
const LENGTHS: [usize; 9] = [0, 1, 3, 4, 1000, 4097, 65_536, 200_003, 700_001];

/// What an implementation says of its sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Numbers are added in the order of ranks whatever the call: a shard has the bits that it has within the whole.
    OfRanks,
    /// One call is the same every time; another may add in another order.
    OfTheCall,
}

/// A type of numbers that are exchanged.
trait Exchanged: Copy + PartialEq + std::fmt::Debug + Send + Sync + 'static {
    /// How far a result may be from the exact one, relative to the sum of what went in.
    const ROUNDING: f64;
    fn of(number: f64) -> Self;
    fn exact(self) -> f64;
    fn numbers(buffer: &mut [Self]) -> Numbers<'_>;
}

macro_rules! exchanged {
    ($type:ty, $rounding:expr, $of:expr, $exact:expr) => {
        impl Exchanged for $type {
            const ROUNDING: f64 = $rounding;
            fn of(number: f64) -> Self {
                $of(number)
            }
            fn exact(self) -> f64 {
                $exact(self)
            }
            fn numbers(buffer: &mut [Self]) -> Numbers<'_> {
                buffer.into()
            }
        }
    };
}

exchanged!(f32, 1e-6, |number| number as f32, f64::from);
exchanged!(f64, 1e-14, |number| number, |number| number);
exchanged!(bf16, 8e-3, bf16::from_f64, bf16::to_f64);

fn drawn<N: Exchanged>(rank: usize, length: usize) -> Vec<N> {
    let mut random = KeyedRandom::new(&[rank as u64, length as u64]);
    (0..length).map(|_| N::of(random.normal())).collect()
}

/// Runs work on every rank, each on a thread of its own, and returns what came of it in rank order.
fn on_all<T: Send>(ranks: Vec<Box<dyn Collective>>, work: impl Fn(&mut dyn Collective) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = ranks.into_iter().map(|mut rank| scope.spawn(move || work(&mut *rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// What one rank's calls left, for one length.
struct Left<N> {
    reduced: Vec<Vec<N>>,
    scattered: Vec<Vec<N>>,
    gathered: Vec<N>,
    sent: Vec<N>,
}

fn calls<N: Exchanged>(gang: &mut dyn Collective, length: usize) -> Left<N> {
    let (rank, world) = (gang.rank(), gang.world_size());
    let own = || drawn::<N>(rank, length);
    let mut left = Left { reduced: Vec::new(), scattered: Vec::new(), gathered: own(), sent: own() };
    for op in [Op::Sum, Op::Max] {
        let mut all = own();
        gang.all_reduce(N::numbers(&mut all), op).unwrap();
        left.reduced.push(all);
        let mut scattered = own();
        gang.reduce_scatter(N::numbers(&mut scattered), op).unwrap();
        left.scattered.push(scattered[shard(length, rank, world)].to_vec());
    }
    gang.all_gather(N::numbers(&mut left.gathered)).unwrap();
    gang.broadcast(N::numbers(&mut left.sent), world - 1).unwrap();
    left
}

fn check_numbers<N: Exchanged>(order: Order, make: &dyn Fn(usize) -> Vec<Box<dyn Collective>>) {
    for world in 1..=4 {
        let once = || on_all(make(world), |gang| LENGTHS.map(|length| calls::<N>(gang, length)));
        let (first, again) = (once(), once());
        for (at, length) in LENGTHS.into_iter().enumerate() {
            let name = format!("{} of {length}, world {world}", std::any::type_name::<N>());
            let inputs: Vec<Vec<N>> = (0..world).map(|rank| drawn(rank, length)).collect();
            let of = |rank: usize| &first[rank][at];
            for (rank, again) in again.iter().enumerate() {
                for op in 0..2 {
                    assert_eq!(of(rank).reduced[op], of(0).reduced[op], "{name}: the same on every rank");
                    assert_eq!(of(rank).reduced[op], again[at].reduced[op], "{name}: the same every time");
                    assert_eq!(
                        of(rank).scattered[op],
                        again[at].scattered[op],
                        "{name}: shards are the same every time"
                    );
                    let own = shard(length, rank, world);
                    for (at, place) in own.enumerate() {
                        let (ours, whole) = (of(rank).scattered[op][at], of(0).reduced[op][place]);
                        let size: f64 = inputs.iter().map(|input| input[place].exact().abs()).sum();
                        // Two ranks, and maxima, have one order.
                        let may_be_off = order == Order::OfTheCall && op == 0 && world > 2;
                        let off = if may_be_off { N::ROUNDING * size * world as f64 } else { 0.0 };
                        let difference = (ours.exact() - whole.exact()).abs();
                        assert!(difference <= off, "{name}: {ours:?} of a shard is {whole:?} of the whole");
                    }
                }
                assert_eq!(of(rank).sent, inputs[world - 1], "{name}: the last rank's numbers");
                let shards = (0..world).flat_map(|from| inputs[from][shard(length, from, world)].to_vec());
                assert_eq!(of(rank).gathered, shards.collect::<Vec<_>>(), "{name}: every rank's shard");
            }
            // All of what is short, and of the rest some of everywhere.
            for place in (0..length).filter(|place| length < 5000 || place % 97 == 0) {
                let column = || inputs.iter().map(|input| input[place].exact());
                let (sum, size) = (column().sum::<f64>(), column().map(f64::abs).sum::<f64>());
                let ours = of(0).reduced[0][place].exact();
                assert!((ours - sum).abs() <= N::ROUNDING * size * world as f64, "{name}: {ours} is not {sum}");
                assert_eq!(
                    of(0).reduced[1][place].exact(),
                    column().fold(f64::NEG_INFINITY, f64::max),
                    "{name}: maximum"
                );
            }
        }
    }
}

/// Nobody leaves a barrier before all have come.
fn check_barrier(make: &dyn Fn(usize) -> Vec<Box<dyn Collective>>) {
    use std::sync::atomic::{AtomicUsize, Ordering};
    for world in 1..=4 {
        let come = AtomicUsize::new(0);
        on_all(make(world), |gang| {
            for round in 1..=50 {
                come.fetch_add(1, Ordering::SeqCst);
                gang.barrier().unwrap();
                assert!(come.load(Ordering::SeqCst) >= round * world);
            }
        });
    }
}

fn check_single_numbers(make: &dyn Fn(usize) -> Vec<Box<dyn Collective>>) {
    for (rank, (all, first)) in on_all(make(3), |gang| {
        let own = gang.rank() as f64;
        (gang.all_gather_number(own + 0.5).unwrap(), gang.first_of(own * 10.0 + 4.0).unwrap())
    })
    .into_iter()
    .enumerate()
    {
        assert_eq!((all, first), (vec![0.5, 1.5, 2.5], 4.0), "rank {rank}");
    }
}

/// Checks an implementation; `make` returns the ranks of a world of that size.
pub(super) fn check(order: Order, make: &dyn Fn(usize) -> Vec<Box<dyn Collective>>) {
    check_numbers::<f32>(order, make);
    check_numbers::<bf16>(order, make);
    check_numbers::<f64>(order, make);
    check_barrier(make);
    check_single_numbers(make);
}

#[test]
fn shards_cover_a_buffer_evenly() {
    for (length, world) in [(0, 3), (2, 3), (10, 3), (11, 4)] {
        let shards: Vec<_> = (0..world).map(|rank| shard(length, rank, world)).collect();
        assert_eq!((shards[0].start, shards[world - 1].end), (0, length));
        assert!(shards.windows(2).all(|two| two[0].end == two[1].start));
        assert!(shards.iter().all(|shard| shard.len().abs_diff(length / world) <= 1));
    }
}

#[test]
fn a_world_of_one_keeps_its_numbers() {
    let left = calls::<f32>(&mut Alone, 5);
    assert!(left.reduced.iter().chain(&left.scattered).all(|numbers| *numbers == drawn::<f32>(0, 5)));
}

/// Ends the calls of a member from another thread.
pub(super) type End = Box<dyn Fn() + Send>;

/// A call of the first of two ranks to which the second has to do something.
type Call = fn(&mut dyn Collective, &mut [f32]) -> Result<()>;

const CALLS: [Call; 5] = [
    |gang, numbers| gang.all_reduce(numbers.into(), Op::Sum),
    |gang, numbers| gang.reduce_scatter(numbers.into(), Op::Max),
    |gang, numbers| gang.all_gather(numbers.into()),
    |gang, numbers| gang.broadcast(numbers.into(), 1),
    |gang, _| gang.barrier(),
];

/// Checks that no call waits for longer than its deadline, and none after its end; `form` makes two ranks whose calls may take so long.
pub(super) fn check_ends(form: &dyn Fn(Duration) -> Vec<(Box<dyn Collective>, End)>) {
    // In one write, and over several connections in segments.
    for (call, length) in CALLS.iter().flat_map(|call| [8, 1_000_000].map(|length| (call, length))) {
        let begun = Instant::now();
        let mut numbers = vec![1f32; length];
        let mut ranks = form(Duration::from_millis(300));
        let late = call(&mut *ranks[0].0, &mut numbers).unwrap_err();
        assert!(matches!(late, Error::Gang(_)), "{late}");
        assert!(begun.elapsed() >= Duration::from_millis(300), "{late}");
        call(&mut *ranks[0].0, &mut numbers).unwrap_err();
        drop(ranks);

        let mut ranks = form(Duration::from_secs(60));
        let (own, end) = &mut ranks[0];
        own.check().unwrap();
        std::thread::scope(|scope| {
            let calling = scope.spawn(|| call(&mut **own, &mut numbers).unwrap_err());
            end();
            assert!(matches!(calling.join().unwrap(), Error::Gang(_)));
        });
        own.check().unwrap_err();
        call(&mut **own, &mut numbers).unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(30), "{length} numbers");
    }
}

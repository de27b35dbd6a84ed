//! Bytes of any number from every rank.

use super::on_ranks;

#[test]
fn bytes_of_every_length_come_whole_from_every_rank() {
    on_ranks("gather::bytes_of_every_length_come_whole_from_every_rank", &[1, 2, 3], |comm| {
        // The last ones go in several rounds, some of them without a part of the first rank.
        for size in [0, 1, 1000, 50 << 20] {
            let of = |rank: usize| -> Vec<u8> {
                (0..rank * size).map(|at| (at % 251) as u8 ^ rank as u8).collect()
            };
            let all = comm.all_gather("bytes", &of(comm.rank())).expect("ranks that answer");
            assert_eq!(all.len(), comm.world_size());
            assert!(all.iter().enumerate().all(|(rank, bytes)| *bytes == of(rank)), "{size}");
        }
    });
}

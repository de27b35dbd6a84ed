//! Token shards: the same examples as from text, the same bytes from any number of threads and starts.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use arrow::{
    array::{Array, Int32Array, Int64Array, ListArray, RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema},
};
use data_pipeline::{
    Amounts, DataConfig, Detokenizer, Error, HoldOut, LengthRule, MixtureEntry, OnBad, PrepareOptions,
    PrepareReport, Progress, SpecialTokenNames, Split, StarConfig, Tokenizer, materialise, prepare,
};
use parquet::arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder};

fn set(name: &str) -> String {
    test_support::data_dir().join(name).to_str().unwrap().to_owned()
}

fn lm1b() -> DataConfig {
    DataConfig {
        train: Some(set("lm1b-mini/train-*").into()),
        tokenizer: Some(set("tokenizers/bert-base-uncased/tokenizer.json").into()),
        detokenizer: Detokenizer::Lm1b,
        max_tokens: Some(128),
        ..DataConfig::default()
    }
}

fn gpt2(train: String) -> DataConfig {
    let special_tokens = SpecialTokenNames { eos: "<|endoftext|>".into(), ..SpecialTokenNames::default() };
    let tokenizer = Some(set("tokenizers/gpt2/tokenizer.json").into());
    DataConfig { train: Some(train.into()), tokenizer, special_tokens, ..DataConfig::default() }
}

fn options(output: &Path, rule: LengthRule, threads: usize) -> PrepareOptions {
    PrepareOptions { output: output.into(), rule, hold_out: None, row_group_rows: 500, threads }
}

fn run(config: &DataConfig, output: &Path, rule: LengthRule, threads: usize) -> PrepareReport {
    prepare(config, Split::Train, &options(output, rule, threads), &()).unwrap()
}

fn refusal(config: &DataConfig, output: &Path, rule: LengthRule) -> String {
    let error = prepare(config, Split::Train, &options(output, rule, 1), &()).unwrap_err();
    assert!(error.is_config(), "{error}");
    error.to_string()
}

/// Name and content of the files of a folder, but for its lock.
fn content(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entry = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.unwrap().path();
        (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap())
    };
    fs::read_dir(dir).unwrap().map(entry).filter(|(name, _)| name != ".lock").collect()
}

fn examples(config: &DataConfig) -> (Arc<Tokenizer>, Vec<Vec<u32>>) {
    let tokenizer = Arc::new(config.open_tokenizer().unwrap());
    let dataset = config.open_split(Split::Train, &tokenizer, 1).unwrap();
    let tokens = |row| dataset.example(row).unwrap().unwrap().tokens;
    (tokenizer, (0..dataset.len()).map(tokens).collect())
}

fn prepared(config: &DataConfig, output: &Path) -> DataConfig {
    DataConfig { train: Some(format!("{}/train-*.parquet", output.display()).into()), ..config.clone() }
}

#[test]
fn sentences_read_back_as_from_text_and_threads_change_no_byte() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let report = run(&lm1b(), &one, LengthRule::Keep, 1);
    assert_eq!(run(&lm1b(), &two, LengthRule::Keep, 2), report);
    assert_eq!(content(&one), content(&two));
    let names: Vec<String> = content(&one).into_keys().collect();
    assert_eq!(names, ["prepare.json", "train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]);

    let (_, direct) = examples(&lm1b());
    assert_eq!(examples(&prepared(&lm1b(), &one)).1, direct);
    assert_eq!((report.files, report.rows_read), (2, direct.len() as u64));
    assert_eq!(report.tokens, direct.iter().map(|ids| ids.len() as u64).sum::<u64>());
    assert!(direct.iter().all(|ids| ids.len() <= 128));

    let file = File::open(one.join("train-00000-of-00002.parquet")).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let metadata = reader.metadata();
    assert!(metadata.row_groups().iter().rev().skip(1).all(|group| group.num_rows() == 500));
    assert!(metadata.row_group(0).column(0).dictionary_page_offset().is_some());
    let column = &reader.schema().fields()[0];
    assert!(!column.is_nullable());
    let DataType::List(element) = column.data_type() else { panic!("{column}") };
    assert_eq!((element.data_type(), element.is_nullable()), (&DataType::Int32, false));
}

#[test]
fn split_leaves_long_documents_out() {
    let dir = tempfile::tempdir().unwrap();
    let config = gpt2(set("owt-gpt2-1024-split-mini/train-*"));
    let report = run(&config, dir.path(), LengthRule::Split(600), 2);
    let (_, mut direct) = examples(&config);
    assert_eq!(report.rows_read, direct.len() as u64);
    direct.retain(|ids| ids.len() <= 600);
    assert_eq!(report.long_rows, report.rows_read - direct.len() as u64);
    assert!(report.long_rows > 0 && !direct.is_empty());
    assert_eq!(examples(&prepared(&config, dir.path())).1, direct);
}

/// The documents of a set of pieces, put together again.
fn documents(pieces: &[(i64, i32, Vec<u32>)], tokenizer: &Tokenizer) -> Vec<String> {
    let mut documents: Vec<(i64, Vec<u32>)> = Vec::new();
    for (document, _, ids) in pieces {
        match documents.last_mut() {
            Some((last, all)) if last == document => all.extend(ids),
            _ => documents.push((*document, ids.clone())),
        }
    }
    documents.into_iter().map(|(_, ids)| tokenizer.decode(&ids, false)).collect()
}

/// A column of a batch.
fn column<'a, T: 'static>(batch: &'a RecordBatch, name: &str) -> &'a T {
    batch.column_by_name(name).unwrap().as_any().downcast_ref::<T>().unwrap()
}

/// The rows of a file of pieces: document, chunk, ids.
fn pieces(path: &Path) -> Vec<(i64, i32, Vec<u32>)> {
    let reader =
        ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap().build().unwrap();
    let mut rows = Vec::new();
    for batch in reader {
        let batch = batch.unwrap();
        let (documents, chunks) =
            (column::<Int64Array>(&batch, "doc_id"), column::<Int32Array>(&batch, "chunk"));
        for row in 0..batch.num_rows() {
            let ids = column::<ListArray>(&batch, "token_ids").value(row);
            let ids = ids.as_any().downcast_ref::<Int32Array>().unwrap().values();
            rows.push((documents.value(row), chunks.value(row), ids.iter().map(|&id| id as u32).collect()));
        }
    }
    rows
}

fn write_texts(path: &Path, texts: &[String]) {
    let schema = Arc::new(Schema::new(vec![Field::new("text", DataType::Utf8, true)]));
    let texts = Arc::new(StringArray::from(texts.to_vec()));
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), schema.clone(), None).unwrap();
    writer.write(&RecordBatch::try_new(schema, vec![texts]).unwrap()).unwrap();
    writer.close().unwrap();
}

#[test]
fn cut_makes_the_pieces_of_the_published_set() {
    let dir = tempfile::tempdir().unwrap();
    let (text, output) = (dir.path().join("text.parquet"), dir.path().join("pieces"));
    let mut published = pieces(Path::new(&set("owt-gpt2-1024-mini/train-00004-of-00008.parquet")));
    // The shard's documents are counted over the shards before it, too.
    let first = published[0].0;
    published.iter_mut().for_each(|(document, ..)| *document -= first);
    let tokenizer = gpt2(String::new()).open_tokenizer().unwrap();
    write_texts(&text, &documents(&published, &tokenizer));
    let config = gpt2(text.to_str().unwrap().into());
    let report = run(&config, &output, LengthRule::Cut(1022), 2);
    let ours = pieces(&output.join("train-00000-of-00001.parquet"));
    assert_eq!(report.rows_written, ours.len() as u64);
    assert!(ours.len() as u64 > report.rows_read, "some documents are cut");
    assert_eq!(ours.len(), published.len());
    // The published set also cuts before a dash, once in this shard.
    assert_eq!(ours.iter().zip(&published).filter(|(ours, theirs)| ours != theirs).count(), 2);

    let (_, direct) = examples(&config);
    let mut whole: Vec<Vec<u32>> = vec![Vec::new(); direct.len()];
    for (document, _, ids) in &ours {
        assert_eq!(&tokenizer.encode(&tokenizer.decode(ids, false)).unwrap(), ids);
        whole[*document as usize].extend(ids);
    }
    assert_eq!(whole, direct, "the pieces of a document are its ids");
    let ids: Vec<Vec<u32>> = ours.into_iter().map(|(_, _, ids)| ids).collect();
    assert_eq!(examples(&prepared(&config, &output)).1, ids);
}

/// Asks to stop after so many rows.
struct StopAfter {
    rows: u64,
    seen: AtomicU64,
}

impl Progress for StopAfter {
    fn begin(&self, _part: &str, _rows: u64) {}
    fn advance(&self, more: Amounts) {
        self.seen.fetch_add(more.rows, Ordering::Relaxed);
    }
    fn should_stop(&self) -> bool {
        self.seen.load(Ordering::Relaxed) >= self.rows
    }
}

#[test]
fn a_job_goes_on_where_it_was_stopped_or_killed() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, broken) = (dir.path().join("whole"), dir.path().join("broken"));
    run(&lm1b(), &whole, LengthRule::Keep, 1);
    let stop = StopAfter { rows: 9000, seen: AtomicU64::new(0) };
    let options = options(&broken, LengthRule::Keep, 1);
    let report = prepare(&lm1b(), Split::Train, &options, &stop).unwrap();
    assert!(report.stopped && report.files == 1);
    let first = broken.join("train-00000-of-00002.parquet");
    let second = broken.join("train-00001-of-00002.parquet");
    assert!(first.exists() && !second.exists() && second.with_extension("partial").exists());
    // What a kill leaves: half a file under another name.
    fs::write(second.with_extension("partial"), "half a file").unwrap();
    let before = fs::metadata(&first).unwrap().modified().unwrap();
    let report = run(&lm1b(), &broken, LengthRule::Keep, 2);
    assert!(!report.stopped && (report.files, report.finished_before) == (1, 1));
    assert_eq!(fs::metadata(&first).unwrap().modified().unwrap(), before);
    assert_eq!(content(&broken), content(&whole));
    let again = run(&lm1b(), &broken, LengthRule::Keep, 1);
    assert_eq!(again, PrepareReport { finished_before: 2, ..PrepareReport::default() });
}

#[test]
fn a_folder_of_other_shards_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out");
    let config = DataConfig { train: Some(set("lm1b-mini/train-00000*").into()), ..lm1b() };
    run(&config, &output, LengthRule::Keep, 1);
    let rule = refusal(&config, &output, LengthRule::Split(100));
    assert!(rule.contains("rule = keep, and now it is split at 100 tokens"), "{rule}");
    let longer = DataConfig { max_tokens: Some(64), ..config.clone() };
    let longer = refusal(&longer, &output, LengthRule::Keep);
    assert!(longer.contains("data.max_tokens = 128, and now it is 64"), "{longer}");
    assert!(refusal(&lm1b(), &output, LengthRule::Keep).contains("other input files"));

    // Another split may lie beside it.
    let test = DataConfig { test: Some(set("lm1b-mini/test-*").into()), ..config.clone() };
    prepare(&test, Split::Test, &options(&output, LengthRule::Keep, 1), &()).unwrap();
    run(&config, &output, LengthRule::Keep, 1);

    fs::remove_file(output.join("prepare.json")).unwrap();
    assert!(refusal(&config, &output, LengthRule::Keep).contains("was not made by this job"));
    fs::write(output.join("prepare.json"), "{").unwrap();
    assert!(refusal(&config, &output, LengthRule::Keep).contains("prepare.json"));
    assert!(refusal(&config, dir.path(), LengthRule::Cut(0)).contains("leaves no token"));
}

/// Asks another job to write to the same folder in the middle of this one.
struct Meanwhile<'a>(&'a (dyn Fn() + Sync), AtomicU64);

impl Progress for Meanwhile<'_> {
    fn begin(&self, _part: &str, _rows: u64) {}
    fn advance(&self, _more: Amounts) {
        if self.1.fetch_add(1, Ordering::Relaxed) == 0 {
            self.0();
        }
    }
    fn should_stop(&self) -> bool {
        false
    }
}

#[test]
fn one_job_writes_to_a_folder_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let (alone, shared) = (dir.path().join("alone"), dir.path().join("shared"));
    run(&lm1b(), &alone, LengthRule::Keep, 1);
    let test = DataConfig { test: Some(set("lm1b-mini/test-*").into()), ..lm1b() };
    let second = || {
        for split in [Split::Train, Split::Test] {
            let refused = prepare(&test, split, &options(&shared, LengthRule::Keep, 1), &()).unwrap_err();
            assert!(
                refused.is_config() && refused.to_string().contains("another job is writing to"),
                "{refused}"
            );
        }
        let graphs = materialise(&StarConfig::default(), 1, &shared).unwrap_err();
        assert!(graphs.to_string().contains("another job is writing to"), "{graphs}");
    };
    let options = options(&shared, LengthRule::Keep, 1);
    prepare(&lm1b(), Split::Train, &options, &Meanwhile(&second, AtomicU64::new(0))).unwrap();
    assert_eq!(content(&shared), content(&alone));
    // Its end gives the folder free.
    prepare(&test, Split::Test, &options, &()).unwrap();
}

#[test]
fn ids_of_another_tokenizer_are_refused_and_files_that_do_not_say_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let gpt2 = gpt2(set("owt-gpt2-1024-split-mini/train-*"));
    run(&gpt2, dir.path(), LengthRule::Split(600), 1);
    let shards = prepared(&gpt2, dir.path());
    let special_tokens = SpecialTokenNames { eos: "<|end|>".into(), ..gpt2.special_tokens.clone() };
    let other = DataConfig { special_tokens, on_bad_file: OnBad::Skip, ..shards.clone() };
    let tokenizer = Arc::new(other.open_tokenizer().unwrap());
    let refused = other.open_split(Split::Train, &tokenizer, 1).err().unwrap();
    assert!(refused.is_config());
    let (refused, theirs) = (refused.to_string(), gpt2.open_tokenizer().unwrap().fingerprint());
    for part in ["train-00000-of-00001.parquet", &theirs, &tokenizer.fingerprint(), "data.tokenizer"] {
        assert!(refused.contains(part), "'{part}' is not in: {refused}");
    }
    examples(&shards);
    // The published sets do not say.
    let unsaid = DataConfig { train: Some(set("owt-gpt2-1024-mini/train-00004*").into()), ..other };
    examples(&unsaid);
}

#[test]
fn a_bad_row_is_named_and_spoils_no_folder() {
    let dir = tempfile::tempdir().unwrap();
    let config = DataConfig { train: Some(set("bad/null_texts.parquet").into()), ..lm1b() };
    let options = options(dir.path(), LengthRule::Keep, 2);
    let error = prepare(&config, Split::Train, &options, &()).unwrap_err();
    assert!(matches!(&error, Error::Null { address, .. } if address.row == 8), "{error}");
    assert!(!content(dir.path()).keys().any(|name| name.ends_with(".parquet")));
    let error = prepare(&config, Split::Train, &options, &()).unwrap_err();
    assert!(!error.is_config(), "the next start says the same: {error}");
}

#[test]
fn a_huge_document_is_cut_like_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let config = gpt2(set("bad/huge_document.parquet"));
    let report = run(&config, dir.path(), LengthRule::Cut(1022), 1);
    let ours = pieces(&dir.path().join("train-00000-of-00001.parquet"));
    assert!(ours.iter().all(|(_, _, ids)| ids.len() <= 1022));
    assert_eq!(report.rows_read, 51);
    assert!(ours.iter().filter(|(document, ..)| *document == 32).count() > 300);
}

fn holding_out(output: &Path, rows: u64, threads: usize) -> PrepareOptions {
    let hold_out = Some(HoldOut { rows, seed: 7 });
    PrepareOptions { hold_out, ..options(output, LengthRule::Keep, threads) }
}

const BOTH: [Split; 2] = [Split::Train, Split::Validation];

fn both(config: &DataConfig, options: &PrepareOptions) -> [PrepareReport; 2] {
    BOTH.map(|split| prepare(config, split, options, &()).unwrap())
}

/// The rows of the shards of a split.
fn rows_of(config: &DataConfig, output: &Path, split: Split) -> Vec<Vec<u32>> {
    let shards = format!("{}/{}-*.parquet", output.display(), split.name());
    examples(&DataConfig { train: Some(shards.into()), ..config.clone() }).1
}

#[test]
fn rows_held_out_and_the_others_are_all_rows_of_the_training_split() {
    let dir = tempfile::tempdir().unwrap();
    let [train, validation] = both(&lm1b(), &holding_out(dir.path(), 2000, 2));
    assert_eq!((validation.files, validation.rows_read, validation.rows_written), (2, 2000, 2000));
    let (_, mut direct) = examples(&lm1b());
    assert_eq!(train.rows_written + 2000, direct.len() as u64);
    let mut together = BOTH.map(|split| rows_of(&lm1b(), dir.path(), split)).concat();
    together.sort_unstable();
    direct.sort_unstable();
    assert!(together == direct, "a row is missing or there twice");
}

#[test]
fn neither_threads_nor_an_interruption_change_what_is_held_out() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, broken) = (dir.path().join("whole"), dir.path().join("broken"));
    both(&lm1b(), &holding_out(&whole, 2000, 1));
    for (split, rows) in [(Split::Train, 9000), (Split::Validation, 200)] {
        let stop = StopAfter { rows, seen: AtomicU64::new(0) };
        assert!(prepare(&lm1b(), split, &holding_out(&broken, 2000, 1), &stop).unwrap().stopped);
    }
    fs::write(broken.join("validation-00001-of-00002.partial"), "half a file").unwrap();
    let [train, _] = both(&lm1b(), &holding_out(&broken, 2000, 2));
    assert_eq!((train.files, train.finished_before), (1, 1));
    assert!(content(&broken) == content(&whole), "an interruption or threads change the bytes");
    let finished = PrepareReport { finished_before: 2, ..PrepareReport::default() };
    assert_eq!(both(&lm1b(), &holding_out(&broken, 2000, 1)), [finished; 2]);
}

/// Asks to stop when it is asked the tenth time.
struct StopAtTenth(AtomicU64);

impl Progress for StopAtTenth {
    fn begin(&self, _part: &str, _rows: u64) {}
    fn advance(&self, _more: Amounts) {}
    fn should_stop(&self) -> bool {
        self.0.fetch_add(1, Ordering::Relaxed) >= 9
    }
}

#[test]
fn a_job_stops_within_a_file_of_few_rows() {
    let dir = tempfile::tempdir().unwrap();
    let stop = StopAtTenth(AtomicU64::new(0));
    let report = prepare(&lm1b(), Split::Validation, &holding_out(dir.path(), 100, 1), &stop).unwrap();
    assert!(report.stopped && report.files == 0, "{report:?}");
}

#[test]
fn a_folder_with_other_rows_held_out_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (output, plain) = (dir.path().join("out"), dir.path().join("plain"));
    let config = DataConfig { train: Some(set("lm1b-mini/test-*").into()), ..lm1b() };
    both(&config, &holding_out(&output, 20, 1));
    run(&config, &plain, LengthRule::Keep, 1);
    let before = [content(&output), content(&plain)];
    let held_out = |rows, seed| Some(HoldOut { rows, seed });
    for (folder, hold_out, split, part) in [
        (&output, held_out(20, 8), Split::Train, "= 20 rows by seed 7, and now it is 20 rows by seed 8"),
        (&output, held_out(21, 7), Split::Validation, "by seed 7, and now it is 21 rows by seed 7"),
        (&output, None, Split::Train, "and now it is none"),
        (&plain, held_out(20, 7), Split::Train, "hold-out = none, and now it is 20 rows by seed 7"),
        (&plain, held_out(20, 7), Split::Validation, "the train shards"),
    ] {
        let options = PrepareOptions { hold_out, ..options(folder, LengthRule::Keep, 1) };
        let error = prepare(&config, split, &options, &()).unwrap_err();
        assert!(error.is_config() && error.to_string().contains(part), "'{part}' is not in: {error}");
    }
    assert!([content(&output), content(&plain)] == before, "a refused job writes nothing");

    // The test split is what it is without.
    let test = DataConfig { test: config.train.clone(), ..config };
    prepare(&test, Split::Test, &holding_out(&output, 20, 1), &()).unwrap();
    let again = prepare(&test, Split::Test, &options(&output, LengthRule::Keep, 1), &()).unwrap();
    assert_eq!(again.finished_before, 1);
}

#[test]
fn what_cannot_be_held_out_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out");
    let test = || set("lm1b-mini/test-*").into();
    let few = DataConfig { train: Some(test()), ..lm1b() };
    let rows = examples(&few).1.len() as u64;
    let twice = DataConfig { validation: Some(test()), ..lm1b() };
    let news = MixtureEntry { name: "news".into(), path: test(), weight: 1.0 };
    let mixed = DataConfig { train: None, mixture: vec![news], ..lm1b() };
    for (config, rows, part) in [
        (&few, 0, "at least 1"),
        (&few, rows, "no row to train on"),
        (&few, u64::MAX, "no row to train on"),
        (&twice, 5, "data.validation is set"),
        (&mixed, 5, "data.mixture"),
    ] {
        for split in BOTH {
            let error = prepare(config, split, &holding_out(&output, rows, 1), &()).unwrap_err();
            assert!(error.is_config() && error.to_string().contains(part), "'{part}' is not in: {error}");
        }
    }
    assert!(!output.exists());
}

#[test]
fn documents_are_held_out_before_the_rule() {
    let dir = tempfile::tempdir().unwrap();
    let [cut, split, short, chosen] = ["cut", "split", "short", "chosen"].map(|name| dir.path().join(name));
    let config = gpt2(set("owt-gpt2-1024-split-mini/train-*"));
    let with = |rule, output: &Path| PrepareOptions { rule, ..holding_out(output, 50, 2) };
    let reports = both(&config, &with(LengthRule::Cut(300), &cut));
    let [train, validation] = BOTH.map(|split| {
        let shard = cut.join(format!("{}-00000-of-00001.parquet", split.name()));
        pieces(&shard).into_iter().map(|(document, ..)| document).collect::<BTreeSet<i64>>()
    });
    assert!(train.is_disjoint(&validation), "no document has pieces in both");
    assert_eq!([train.len() as u64, validation.len() as u64], reports.map(|report| report.rows_read));
    assert_eq!(validation.len(), 50);

    let [_, validation] = both(&config, &with(LengthRule::Split(600), &split));
    assert_eq!((validation.rows_read, validation.rows_written + validation.long_rows), (50, 50));

    // As many as are asked for are left by the rule when it comes first.
    run(&config, &short, LengthRule::Split(600), 1);
    let [_, validation] = both(&prepared(&config, &short), &holding_out(&chosen, 10, 1));
    assert_eq!(validation.rows_written, 10);
    assert!(rows_of(&config, &chosen, Split::Validation).iter().all(|ids| ids.len() <= 600));
}

#[test]
fn shards_without_rows_are_no_hindrance() {
    let dir = tempfile::tempdir().unwrap();
    let report = prepare(&lm1b(), Split::Validation, &holding_out(dir.path(), 1, 1), &()).unwrap();
    assert_eq!((report.files, report.rows_written), (2, 1));
    assert_eq!(rows_of(&lm1b(), dir.path(), Split::Validation).len(), 1);
}

//! Sound files: the real sets with the tokenizers they are meant for, and every way to store a column.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{
    array::{
        Array, ArrayRef, BinaryArray, DictionaryArray, Int64Array, LargeListArray, LargeStringArray,
        ListArray, RecordBatch, StringArray, StringViewArray, types,
    },
    datatypes::{Field, Int32Type, Schema},
};
use data_pipeline::{
    Columns, DataConfig, Dataset, Detokenizer, Error, Example, MixtureEntry, OnBad, ParquetDataset,
    ParquetOptions, Reader, Sources, SpecialTokenNames, Split, StoreConfig, Task, Tokenizer, detokenize_lm1b,
};
use parquet::{arrow::ArrowWriter, file::properties::WriterProperties};

fn set(name: &str) -> String {
    test_support::data_dir().join(name).to_str().unwrap().to_owned()
}

fn bert_config() -> DataConfig {
    DataConfig {
        train: Some(set("lm1b-mini/train-*").into()),
        validation: Some(set("lm1b-mini/test-*").into()),
        tokenizer: Some(set("tokenizers/bert-base-uncased/tokenizer.json").into()),
        detokenizer: Detokenizer::Lm1b,
        max_tokens: Some(128),
        ..DataConfig::default()
    }
}

fn gpt2_config(name: &str) -> DataConfig {
    let names = SpecialTokenNames {
        pad: "<|pad|>".into(),
        cls: "<|cls|>".into(),
        mask: "<|mask|>".into(),
        eos: "<|endoftext|>".into(),
        bos: "<|bos|>".into(),
        sep: "<|sep|>".into(),
        unk: "<|unk|>".into(),
    };
    DataConfig {
        train: Some(set(&format!("{name}/train-*")).into()),
        validation: Some(set(&format!("{name}/validation-*")).into()),
        tokenizer: Some(set("tokenizers/gpt2/tokenizer.json").into()),
        special_tokens: names,
        ..DataConfig::default()
    }
}

fn open(config: &DataConfig, split: Split) -> (Arc<Tokenizer>, Arc<dyn Dataset>) {
    config.validate().unwrap();
    let tokenizer = Arc::new(config.open_tokenizer().unwrap());
    let dataset = config.open_split(split, &tokenizer, 1).unwrap();
    assert_eq!(dataset.groups().iter().sum::<u64>(), dataset.len());
    (tokenizer, dataset)
}

#[test]
fn lm1b_sentences_are_detokenised_and_cut() {
    let (tokenizer, dataset) = open(&bert_config(), Split::Train);
    let uncut = DataConfig { max_tokens: None, ..bert_config() };
    let (_, uncut) = open(&uncut, Split::Train);
    assert_ne!(dataset.fingerprint(), uncut.fingerprint());
    let mut cut = 0;
    for row in (0..dataset.len()).step_by(3) {
        let (short, long) = (dataset.example(row).unwrap().unwrap(), uncut.example(row).unwrap().unwrap());
        assert!(short.prompt.is_empty() && !short.tokens.is_empty());
        assert_eq!(short.tokens, long.tokens[..long.tokens.len().min(128)]);
        assert!(short.tokens.iter().all(|&id| (id as usize) < 30_522 && id > 103));
        cut += usize::from(long.tokens.len() > 128);
        if row == 0 {
            assert!(!tokenizer.decode(&short.tokens, true).is_empty());
        }
    }
    assert!(cut > 0, "some sentences are longer than 128 tokens");
}

#[test]
fn detokenising_changes_ids() {
    // BERT's word pieces part punctuation anyway; byte pairs see the spaces.
    let lm1b = DataConfig { validation: bert_config().validation, ..gpt2_config("unused") };
    let (tokenizer, without) = open(&lm1b, Split::Validation);
    let (_, with) = open(&DataConfig { detokenizer: Detokenizer::Lm1b, ..lm1b }, Split::Validation);
    assert_eq!(with.len(), without.len());
    assert_ne!(with.fingerprint(), without.fingerprint());
    for row in (0..with.len()).step_by(10) {
        let text = |dataset: &Arc<dyn Dataset>| {
            tokenizer.decode(&dataset.example(row).unwrap().unwrap().tokens, true)
        };
        assert_eq!(text(&with), detokenize_lm1b(&text(&without)));
        assert_ne!(text(&with), text(&without), "a sentence ends with a point");
    }
}

#[test]
fn stored_ids_are_read_as_they_are() {
    let (tokenizer, dataset) = open(&gpt2_config("owt-gpt2-1024-mini"), Split::Validation);
    for row in 0..dataset.len() {
        let tokens = dataset.example(row).unwrap().unwrap().tokens;
        assert!((1..=1022).contains(&tokens.len()));
        if row % 20 == 0 {
            // The set's pieces encode to the same ids again.
            assert_eq!(tokenizer.encode(&tokenizer.decode(&tokens, false)).unwrap(), tokens, "row {row}");
        }
    }
}

#[test]
fn whole_documents_have_at_most_1024_tokens() {
    let (tokenizer, dataset) = open(&gpt2_config("owt-gpt2-1024-split-mini"), Split::Validation);
    let longest = (0..dataset.len()).map(|row| dataset.example(row).unwrap().unwrap().tokens.len()).max();
    assert!(longest <= Some(1024) && longest > Some(900));
    let tokens = dataset.example(5).unwrap().unwrap().tokens;
    assert_eq!(tokenizer.encode(&tokenizer.decode(&tokens, true)).unwrap(), tokens);
}

#[test]
fn threads_read_the_same_rows_in_any_order() {
    let (_, dataset) = open(&gpt2_config("owt-gpt2-1024-mini"), Split::Train);
    let wanted: Vec<Example> = (0..dataset.len()).map(|row| dataset.example(row).unwrap().unwrap()).collect();
    let (_, shared) = open(&DataConfig { memory_mib: 1, ..gpt2_config("owt-gpt2-1024-mini") }, Split::Train);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (shared, wanted) = (&shared, &wanted);
            scope.spawn(move || {
                for i in 0..2000u64 {
                    let row = (i * 7919 + thread * 13) % shared.len();
                    assert_eq!(shared.example(row).unwrap().unwrap(), wanted[row as usize]);
                }
            });
        }
    });
}

fn write(path: &Path, columns: Vec<(&str, ArrayRef)>, rows_per_group: usize) {
    let fields: Vec<Field> =
        columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), true)).collect();
    let schema = Arc::new(Schema::new(fields));
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    let batch = RecordBatch::try_new(schema.clone(), arrays).unwrap();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(rows_per_group)).build();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), schema, Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

fn options(columns: Columns) -> ParquetOptions {
    ParquetOptions {
        columns,
        detokenizer: Detokenizer::None,
        max_tokens: None,
        on_bad_row: OnBad::Error,
        on_bad_file: OnBad::Error,
    }
}

fn numbers(path: &Path, columns: Columns) -> Result<ParquetDataset, Error> {
    ParquetDataset::open(path.to_str().unwrap(), &Arc::new(Tokenizer::numbers(100)), options(columns))
}

fn tokens(dataset: &dyn Dataset) -> Vec<Vec<u32>> {
    (0..dataset.len()).map(|row| dataset.example(row).unwrap().unwrap().tokens).collect()
}

fn in_temporary_file(array: ArrayRef, column: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("set.parquet");
    write(&path, vec![(column, array)], 2);
    (dir, path)
}

#[test]
fn every_kind_of_text_column() {
    let texts = ["1 2", "", "3", "1 2", "99"];
    let dictionary: DictionaryArray<Int32Type> = texts.into_iter().collect();
    let arrays: [ArrayRef; 5] = [
        Arc::new(StringArray::from(texts.to_vec())),
        Arc::new(LargeStringArray::from(texts.to_vec())),
        Arc::new(StringViewArray::from(texts.to_vec())),
        Arc::new(BinaryArray::from_iter_values(texts)),
        Arc::new(dictionary),
    ];
    for array in arrays {
        let kind = array.data_type().clone();
        let (_dir, path) = in_temporary_file(array, "text");
        let dataset = numbers(&path, Columns::Language).unwrap();
        assert_eq!(dataset.groups(), [2, 2, 1]);
        assert_eq!(tokens(&dataset), [vec![8, 9], vec![], vec![10], vec![8, 9], vec![106]], "{kind}");
    }
}

#[test]
fn every_kind_of_id_column() {
    fn lists<T: types::ArrowPrimitiveType>(rows: &[&[i64]]) -> [ArrayRef; 2]
    where
        T::Native: TryFrom<i64>,
    {
        let native = |id: &i64| T::Native::try_from(*id).ok();
        let rows: Vec<Option<Vec<Option<T::Native>>>> =
            rows.iter().map(|row| Some(row.iter().map(native).collect())).collect();
        [
            Arc::new(ListArray::from_iter_primitive::<T, _, _>(rows.clone())),
            Arc::new(LargeListArray::from_iter_primitive::<T, _, _>(rows)),
        ]
    }
    let rows: &[&[i64]] = &[&[7, 8], &[], &[106], &[9, 9, 9]];
    let arrays = [
        lists::<types::Int8Type>(rows),
        lists::<types::UInt8Type>(rows),
        lists::<types::Int16Type>(rows),
        lists::<types::UInt16Type>(rows),
        lists::<types::Int32Type>(rows),
        lists::<types::UInt32Type>(rows),
        lists::<types::Int64Type>(rows),
        lists::<types::UInt64Type>(rows),
    ];
    for array in arrays.into_iter().flatten() {
        let kind = array.data_type().clone();
        let (_dir, path) = in_temporary_file(array, "input_ids");
        let dataset = numbers(&path, Columns::Language).unwrap();
        assert_eq!(tokens(&dataset), [vec![7, 8], vec![], vec![106], vec![9, 9, 9]], "{kind}");
    }
}

#[test]
fn bad_ids_name_their_row_and_spoil_no_other() {
    let rows = vec![
        Some(vec![Some(7), Some(8)]),
        Some(vec![Some(7), Some(107), Some(-3)]),
        None,
        Some(vec![Some(7), None]),
        Some(vec![Some(-1)]),
        Some(vec![Some(9)]),
    ];
    let array = Arc::new(ListArray::from_iter_primitive::<types::Int64Type, _, _>(rows));
    let (_dir, path) = in_temporary_file(array, "token_ids");
    let dataset = numbers(&path, Columns::Language).unwrap();
    for (row, reason) in [
        (1, "token id 107 outside the vocabulary of 107"),
        (2, "is null"),
        (3, "is null"),
        (4, "token id -1 outside"),
    ] {
        let message = dataset.example(row).unwrap_err().to_string();
        let address = format!("row {row} (row group {}) of", row / 2);
        assert!(message.contains(reason) && message.contains(&address), "{message}");
    }
    assert_eq!(dataset.example(0).unwrap().unwrap().tokens, [7, 8]);
    assert_eq!(dataset.example(5).unwrap().unwrap().tokens, [9]);
    assert!(matches!(dataset.example(6), Err(Error::RowOutOfRange { row: 6, len: 6 })));
}

#[test]
fn a_text_that_the_tokenizer_refuses_names_its_row() {
    let (_dir, path) = in_temporary_file(Arc::new(StringArray::from(vec!["1", "2", "three"])), "text");
    let message = numbers(&path, Columns::Language).unwrap().example(2).unwrap_err().to_string();
    assert!(message.contains("row 2 (row group 1)") && message.contains("'three'"), "{message}");
}

#[test]
fn odd_names_of_columns_stay_on_one_line() {
    let (_dir, path) = in_temporary_file(Arc::new(StringArray::from(vec!["1"])), "te\nxt\u{7}");
    let message = numbers(&path, Columns::Language).unwrap_err().to_string();
    assert!(message.ends_with(r"its columns are 'te\nxt\u{7}'"), "{message}");
}

#[test]
fn prompts_need_both_columns_and_lists() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("set.parquet");
    let list = |rows: Vec<Vec<i32>>| -> ArrayRef {
        let rows = rows.into_iter().map(|row| Some(row.into_iter().map(Some).collect::<Vec<_>>()));
        Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(rows))
    };
    write(&path, vec![("input_ids", list(vec![vec![9]])), ("prompt_ids", list(vec![vec![7, 8]]))], 10);
    let example = numbers(&path, Columns::PromptAndTarget).unwrap().example(0).unwrap();
    assert_eq!(example, Some(Example { prompt: vec![7, 8], tokens: vec![9] }));

    write(&path, vec![("input_ids", list(vec![vec![9]]))], 10);
    let message = numbers(&path, Columns::PromptAndTarget).unwrap_err().to_string();
    assert!(message.contains("no column 'prompt_ids'") && message.contains("'input_ids'"), "{message}");

    write(
        &path,
        vec![("prompt_ids", Arc::new(Int64Array::from(vec![1]))), ("input_ids", list(vec![vec![9]]))],
        10,
    );
    let message = numbers(&path, Columns::PromptAndTarget).unwrap_err().to_string();
    assert!(
        message.contains("'prompt_ids'") && message.contains("a list of integers is needed"),
        "{message}"
    );
}

#[test]
fn the_fingerprint_follows_data_and_rules() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("set.parquet");
    let fingerprint = |texts: Vec<&str>, max_tokens, numbers| {
        write(&path, vec![("text", Arc::new(StringArray::from(texts)))], 10);
        let options = ParquetOptions { max_tokens, ..options(Columns::Language) };
        let tokenizer = Arc::new(Tokenizer::numbers(numbers));
        ParquetDataset::open(path.to_str().unwrap(), &tokenizer, options).unwrap().fingerprint().to_owned()
    };
    let base = fingerprint(vec!["1", "2"], None, 10);
    assert_eq!(base, fingerprint(vec!["1", "2"], None, 10));
    assert_ne!(base, fingerprint(vec!["1", "3"], None, 10));
    assert_ne!(base, fingerprint(vec!["1", "2"], Some(1), 10));
    assert_ne!(base, fingerprint(vec!["1", "2"], None, 11));
}

#[test]
fn rows_of_a_group_that_follow_each_other_cost_one_reading() {
    let texts: Vec<String> = (0..6).map(|row| row.to_string()).collect();
    let (_dir, path) = in_temporary_file(Arc::new(StringArray::from(texts)), "text");
    // No memory but for the newest group.
    let reader = Arc::new(Reader::new(Sources::default(), 1));
    let (tokenizer, location) = (Arc::new(Tokenizer::numbers(100)), path.to_str().unwrap().into());
    let options = options(Columns::Language);
    let dataset = ParquetDataset::open_from(&reader, &location, None, &tokenizer, options).unwrap();
    let mut seen = Vec::new();
    let mut rows = [2, 3, 2].into_iter();
    dataset.each_example(&mut rows, &mut |row, example| {
        seen.push((row, example.unwrap().unwrap().tokens));
        if path.exists() {
            // Others read meanwhile, and what they put out cannot be read again.
            dataset.example(5).unwrap();
            std::fs::remove_file(&path).unwrap();
        }
        true
    });
    assert_eq!(seen, [(2, vec![9]), (3, vec![10]), (2, vec![9])]);
    assert!(dataset.example(2).is_err());
}

#[test]
fn sources_of_a_mixture_have_any_name() {
    let dir = tempfile::tempdir().unwrap();
    let source =
        |name: &str| MixtureEntry { name: name.into(), path: bert_config().validation.unwrap(), weight: 1.0 };
    let names = ["news", "web/2024", "../up", "a b", "a_b", &"long ".repeat(100)];
    let mixture: Vec<MixtureEntry> = names.iter().map(|name| source(name)).collect();
    let config = DataConfig { train: None, mixture, ..bert_config() };
    config.validate().unwrap();
    let tokenizer = Arc::new(config.open_tokenizer().unwrap());
    let index = dir.path().join("index/train.idx");
    let dataset = config.open_split_with(Split::Train, &tokenizer, 1, Some(&index)).unwrap();
    assert_eq!(dataset.parts().len(), names.len());
    let kept = |path: &Path| std::fs::read_dir(path).unwrap().count();
    assert_eq!((kept(dir.path()), kept(index.parent().unwrap())), (1, names.len()));
    assert!(index.with_file_name("train.news.idx").exists());
}

#[test]
fn memory_that_open_row_groups_do_not_fit_is_told_with_the_number_to_set() {
    let config = DataConfig { memory_mib: 1, canonical_lanes: 4, ..gpt2_config("owt-gpt2-1024-mini") };
    let (_, dataset) = open(&config, Split::Train);
    let largest = (0..dataset.groups().len()).map(|group| dataset.group_bytes(group)).max().unwrap();
    let open_groups = dataset.groups().len().min(8);
    let needed = (open_groups * largest).div_ceil(1 << 20);
    assert!(needed > 1 && open_groups > 2, "{needed} {open_groups}");
    let warning = config.memory_warning(dataset.as_ref(), 1).unwrap();
    for part in [format!("data.memory_mib={needed},"), format!("{open_groups} row groups"), "prepare".into()]
    {
        assert!(warning.contains(&part), "'{part}' is not in: {warning}");
    }
    let enough = DataConfig { memory_mib: needed, ..config.clone() };
    assert_eq!(enough.memory_warning(dataset.as_ref(), 1), None);
    // A rank of four has one lane.
    let fewer = DataConfig { memory_mib: (2 * largest).div_ceil(1 << 20), ..config.clone() };
    assert!(fewer.memory_warning(dataset.as_ref(), 4).is_none());
    assert!(fewer.memory_warning(dataset.as_ref(), 1).is_some());
    let star = DataConfig { task: Task::Star, ..DataConfig::default() };
    let graphs = star.open_split(Split::Train, &Arc::new(star.open_tokenizer().unwrap()), 1).unwrap();
    assert_eq!(star.memory_warning(graphs.as_ref(), 1), None);
}

#[test]
fn settings_are_checked() {
    let refused = |config: DataConfig| {
        let error = config.validate().unwrap_err();
        assert!(error.is_config());
        error.to_string()
    };
    assert!(refused(DataConfig::default()).contains("data.tokenizer is not set"));
    assert!(refused(DataConfig { threads: 0, ..bert_config() }).contains("data.threads"));
    assert!(refused(DataConfig { max_tokens: Some(0), ..bert_config() }).contains("data.max_tokens"));
    assert!(refused(DataConfig { window_groups: 0, ..bert_config() }).contains("data.window_groups"));
    assert!(refused(DataConfig { memory_mib: 0, ..bert_config() }).contains("data.memory_mib"));
    assert!(refused(DataConfig { threads: 1_000_000, ..bert_config() }).contains("data.threads = 1000000"));
    for most in [usize::MAX, 10_000_000_000] {
        let steps = refused(DataConfig { prefetch_steps: most, ..bert_config() });
        assert!(steps.contains("data.prefetch_steps") && steps.contains("at most 65536"), "{steps}");
        let steps = refused(DataConfig { read_ahead_steps: most, ..bert_config() });
        assert!(steps.contains("data.read_ahead_steps"), "{steps}");
    }
    let cache = DataConfig { cache_dir: Some("x".into()), cache_mib: 0, ..bert_config() };
    assert!(refused(cache).contains("data.cache_mib"));
    let store = |store: StoreConfig| refused(DataConfig { store, ..bert_config() });
    assert!(
        store(StoreConfig { timeout_secs: 0, ..StoreConfig::default() }).contains("data.store.timeout_secs")
    );
    assert!(
        store(StoreConfig { concurrency: 0, ..StoreConfig::default() }).contains("data.store.concurrency")
    );
    assert!(
        store(StoreConfig { concurrency: usize::MAX, ..StoreConfig::default() })
            .contains("data.store.concurrency")
    );
    for endpoint in ["localhost:9000", "http://localhost:9000"] {
        let message = store(StoreConfig { endpoint: Some(endpoint.into()), ..StoreConfig::default() });
        assert!(message.contains("data.store.endpoint") && message.contains(endpoint), "{message}");
    }
    let tokenizer = Arc::new(bert_config().open_tokenizer().unwrap());
    let unset = bert_config().open_split(Split::Test, &tokenizer, 1).err().unwrap();
    assert!(unset.is_config() && unset.to_string().contains("data.test is not set"));
    let missing = DataConfig { train: Some("no/such/place".into()), ..bert_config() };
    let missing = missing.open_split(Split::Train, &tokenizer, 1).err().unwrap();
    assert!(missing.is_config() && missing.to_string().contains("no/such/place"));
    let star = DataConfig { task: Task::Star, ..DataConfig::default() };
    star.validate().unwrap();
    assert_eq!(star.open_tokenizer().unwrap().vocab_size(), 27);
}

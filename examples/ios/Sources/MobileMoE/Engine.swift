import CMobileMoE
import Foundation

/// What the engine refused, in its own sentence.
public struct EngineError: LocalizedError {
    public let errorDescription: String?
}

/// The C API (native/include/mobilemoe.h) for one text at a time: token ids in, token ids out.
///
/// An engine is for one thread at a time.
public final class Engine {
    /// Tokens that fit, those of the prompt and the new ones together.
    public let context: Int
    private let engine: OpaquePointer
    private var sequence: OpaquePointer?
    private var sampler: OpaquePointer?
    private var logits: [Float]

    /// Maps an engine file, or repacks a checkpoint's folder into memory. threads: 0 for one on each large core.
    public init(path: String, threads: Int) throws {
        var options = mm_default_options()
        options.threads = Int32(threads)
        var opened: OpaquePointer?
        try Engine.check(mm_open(path, &options, &opened))
        guard let opened else { throw EngineError(errorDescription: "the engine opened nothing") }
        let info = mm_describe(opened)
        engine = opened
        context = Int(info.context)
        logits = [Float](repeating: 0, count: Int(info.vocab_size))
    }

    deinit {
        mm_sampler_free(sampler)
        mm_sequence_free(sequence)
        mm_close(engine)
    }

    /// Rewrites the INT4 checkpoint in `folder` as an engine file, which opens at once and stays on disk.
    public static func repack(folder: String, engineFile: String) throws {
        try check(mm_repack(folder, engineFile))
    }

    /// Begins a text; `temperature` 0 always takes the likeliest token.
    public func start(temperature: Double, topP: Double, seed: UInt64) throws {
        var sampling = mm_greedy()
        sampling.temperature = temperature
        sampling.top_p = topP
        sampling.seed = seed
        mm_sampler_free(sampler)
        sampler = nil
        try Engine.check(mm_sampler_new(&sampling, Int32(logits.count), &sampler))
        mm_sequence_free(sequence)
        sequence = nil
        try Engine.check(mm_sequence_new(engine, 0, &sequence))
    }

    /// Reads tokens, at least one, and computes what follows them.
    public func append(_ tokens: [Int32]) throws {
        guard sequence != nil else { throw EngineError(errorDescription: "start a text before appending to it") }
        let status = tokens.withUnsafeBufferPointer { ids -> mm_status in
            var request = mm_request(
                sequence: sequence, tokens: ids.baseAddress, count: Int32(ids.count), outputs: 1)
            return mm_forward(engine, &request, 1, &logits)
        }
        try Engine.check(status)
    }

    /// The next token after those that were appended; it is not appended itself.
    public func choose() throws -> Int32 {
        guard let sequence, mm_sequence_length(sequence) > 0 else {
            throw EngineError(errorDescription: "append tokens before choosing the next")
        }
        var token: Int32 = 0
        try Engine.check(mm_sample(sampler, logits, &token))
        return token
    }

    private static func check(_ status: mm_status) throws {
        if status != MM_OK { throw EngineError(errorDescription: String(cString: mm_last_error())) }
    }
}

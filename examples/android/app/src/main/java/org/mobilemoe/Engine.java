package org.mobilemoe;

/**
 * The C API (native/include/mobilemoe.h) for one text at a time: token ids in, token ids out.
 *
 * <p>Each method throws an EngineException with the engine's own sentence. An engine is for one thread at a time.
 */
public final class Engine implements AutoCloseable {
    static {
        System.loadLibrary("mobilemoe_jni");
    }

    private long handle;

    /** Maps an engine file, or repacks a checkpoint's folder into memory. threads: 0 for one on each large core. */
    public Engine(String path, int threads) {
        handle = open(path, threads);
    }

    /** Rewrites the INT4 checkpoint in `folder` as an engine file, which opens at once and stays on disk. */
    public static native void repack(String folder, String engineFile);

    /** Tokens that fit, those of the prompt and the new ones together. */
    public int context() {
        return context(opened());
    }

    /** Begins a text; `temperature` 0 always takes the likeliest token. */
    public void start(double temperature, double topP, long seed) {
        start(opened(), temperature, topP, seed);
    }

    /** Reads tokens, at least one, and computes what follows them. */
    public void append(int[] tokens) {
        append(opened(), tokens);
    }

    /** The next token after those that were appended; it is not appended itself. */
    public int choose() {
        return choose(opened());
    }

    @Override
    public void close() {
        if (handle != 0) close(handle);
        handle = 0;
    }

    private long opened() {
        if (handle == 0) throw new IllegalStateException("the engine is closed");
        return handle;
    }

    private static native long open(String path, int threads);

    private static native void close(long handle);

    private static native int context(long handle);

    private static native void start(long handle, double temperature, double topP, long seed);

    private static native void append(long handle, int[] tokens);

    private static native int choose(long handle);
}

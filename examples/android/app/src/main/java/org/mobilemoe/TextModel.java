package org.mobilemoe;

import java.io.File;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import org.json.JSONArray;
import org.json.JSONException;
import org.json.JSONObject;

/** A model's folder (config.json, model.safetensors, tokenizer.json) that writes text. For one thread at a time. */
public final class TextModel implements AutoCloseable {
    /** Gets a text piece by piece; false ends it. */
    public interface Listener {
        boolean onText(String piece);
    }

    private final Engine engine;
    private final Tokenizer tokenizer;
    private final Set<Integer> stops = new HashSet<>();

    /**
     * Opens the model; at the first time it writes `model.mobilemoe` beside it, which later opens at once.
     *
     * <p>IOException where a file cannot be read, EngineException where the engine refuses the model.
     */
    public TextModel(File folder, int threads) throws IOException {
        try {
            tokenizer = new Tokenizer(read(new File(folder, "tokenizer.json")));
            JSONObject config = new JSONObject(read(new File(folder, "config.json")));
            JSONArray ends = config.optJSONArray("eos_token_id");
            if (ends == null) stops.add(config.optInt("eos_token_id", -1));
            for (int i = 0; ends != null && i < ends.length(); i++) stops.add(ends.getInt(i));
        } catch (JSONException error) {
            throw new IOException(folder + ": " + error.getMessage(), error);
        }
        stops.add(tokenizer.control("<|eot|>"));
        engine = open(folder, new File(folder, "model.mobilemoe"), threads);
    }

    /** An engine file that another version of the engine wrote, or of which a part is missing, is written again. */
    private static Engine open(File folder, File engineFile, int threads) {
        if (engineFile.exists()) {
            try {
                return new Engine(engineFile.getPath(), threads);
            } catch (EngineException error) {
                if (!hasWeights(folder)) throw error;
            }
        }
        Engine.repack(folder.getPath(), engineFile.getPath());
        return new Engine(engineFile.getPath(), threads);
    }

    private static boolean hasWeights(File folder) {
        String[] found = folder.list((where, name) -> name.startsWith("model") && name.endsWith(".safetensors"));
        return found != null && found.length > 0;
    }

    /** The ids of a text to continue. */
    public int[] prompt(String text) {
        List<Integer> ids = new ArrayList<>();
        addControl(ids, "<|begin_of_text|>");
        ids.addAll(tokenizer.encode(text));
        return array(ids);
    }

    /** The ids of a question that the model is to answer (docs/spec.md, section 3.4); for models trained to chat. */
    public int[] question(String text) {
        List<Integer> ids = new ArrayList<>();
        addControl(ids, "<|begin_of_text|>");
        addHeader(ids, "user");
        ids.addAll(tokenizer.encode("\n\n" + text));
        addControl(ids, "<|eot|>");
        addHeader(ids, "assistant");
        ids.addAll(tokenizer.encode("\n\n"));
        return array(ids);
    }

    /**
     * Writes at most `most` tokens behind `prompt`, until the model or the listener ends. temperature 0: greedy.
     *
     * <p>EngineException for a prompt that is longer than the model's context.
     */
    public void write(int[] prompt, int most, double temperature, long seed, Listener listener) {
        if (prompt.length > engine.context()) {
            throw new EngineException(
                    "the text has " + prompt.length + " tokens, more than the context of " + engine.context());
        }
        byte[] waiting = new byte[0]; // the beginning of a character whose other bytes are still to come
        int fitting = Math.min(most, engine.context() - prompt.length + 1);
        engine.start(temperature, 0.95, seed);
        int[] step = prompt;
        for (int made = 0; made < fitting; made++) {
            engine.append(step);
            int token = engine.choose();
            if (stops.contains(token)) break;
            byte[] more = tokenizer.bytes(token);
            byte[] bytes = Arrays.copyOf(waiting, waiting.length + more.length);
            System.arraycopy(more, 0, bytes, waiting.length, more.length);
            int whole = bytes.length - unfinished(bytes);
            waiting = Arrays.copyOfRange(bytes, whole, bytes.length);
            if (!listener.onText(new String(bytes, 0, whole, StandardCharsets.UTF_8))) break;
            step = new int[] {token};
        }
    }

    @Override
    public void close() {
        engine.close();
    }

    private void addControl(List<Integer> ids, String name) {
        int id = tokenizer.control(name);
        if (id >= 0) ids.add(id);
    }

    private void addHeader(List<Integer> ids, String role) {
        addControl(ids, "<|header_start|>");
        ids.addAll(tokenizer.encode(role));
        addControl(ids, "<|header_end|>");
    }

    /** How many of the last bytes begin a character of UTF-8 that they do not end: 0 to 3. */
    private static int unfinished(byte[] bytes) {
        for (int back = 1; back <= Math.min(3, bytes.length); back++) {
            int lead = bytes[bytes.length - back] & 0xff;
            if ((lead & 0xC0) == 0x80) continue; // not a first byte
            int length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : lead >= 0xC0 ? 2 : 1;
            return length > back ? back : 0;
        }
        return 0;
    }

    private static int[] array(List<Integer> ids) {
        int[] found = new int[ids.size()];
        for (int i = 0; i < found.length; i++) found[i] = ids.get(i);
        return found;
    }

    private static String read(File file) throws IOException {
        return new String(Files.readAllBytes(file.toPath()), StandardCharsets.UTF_8);
    }
}

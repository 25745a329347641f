package org.mobilemoe;

import java.io.ByteArrayOutputStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.json.JSONArray;
import org.json.JSONException;
import org.json.JSONObject;

/** Byte-level BPE as a model's tokenizer.json describes it: text to token ids and back. */
public final class Tokenizer {
    // Where text is cut before its pieces are merged: the pattern of Llama 3, which every model here has.
    private static final String SPLIT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}"
            + "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
    // Its \s is Unicode's white space, which Java's own is not.
    private static final String SPACE = "\\t-\\r\\u0085\\p{Z}";
    private static final Pattern PIECES = Pattern.compile(SPLIT.replace("[^\\s", "[^" + SPACE)
            .replace("\\s", "[" + SPACE + "]")
            .replace("\\S", "[^" + SPACE + "]"));
    private static final String ALPHABET = alphabet();

    private final Map<String, Integer> ids = new HashMap<>();
    private final Map<String, Integer> ranks = new HashMap<>(); // of two parts with a blank between them
    private final Map<String, Integer> controls = new HashMap<>();
    private final Map<Integer, byte[]> bytes = new HashMap<>();

    /** Reads the content of a tokenizer.json. */
    public Tokenizer(String json) throws JSONException {
        JSONObject file = new JSONObject(json);
        JSONArray cuts = file.getJSONObject("pre_tokenizer").getJSONArray("pretokenizers");
        if (!SPLIT.equals(cuts.getJSONObject(0).getJSONObject("pattern").getString("Regex"))) {
            throw new JSONException("tokenizer.json splits text in another way than Llama 3's");
        }
        JSONObject model = file.getJSONObject("model");
        JSONObject vocabulary = model.getJSONObject("vocab");
        for (Iterator<String> names = vocabulary.keys(); names.hasNext(); ) {
            String name = names.next();
            ids.put(name, vocabulary.getInt(name));
            bytes.put(vocabulary.getInt(name), bytesOf(name));
        }
        JSONArray merges = model.getJSONArray("merges");
        for (int rank = 0; rank < merges.length(); rank++) {
            JSONArray pair = merges.optJSONArray(rank); // an older form is one text
            ranks.put(pair == null ? merges.getString(rank) : pair.getString(0) + " " + pair.getString(1), rank);
        }
        JSONArray added = file.getJSONArray("added_tokens");
        for (int i = 0; i < added.length(); i++) {
            JSONObject token = added.getJSONObject(i);
            controls.put(token.getString("content"), token.getInt("id"));
            bytes.remove(token.getInt("id")); // nothing that a reader should see
        }
    }

    /** The id of a control token like {@code <|eot|>}, or -1. */
    public int control(String name) {
        return controls.getOrDefault(name, -1);
    }

    /** The ids of a text. What looks like a control token in it is plain text. */
    public List<Integer> encode(String text) {
        List<Integer> found = new ArrayList<>();
        for (Matcher piece = PIECES.matcher(text); piece.find(); ) {
            StringBuilder letters = new StringBuilder();
            for (byte each : piece.group().getBytes(StandardCharsets.UTF_8)) letters.append(ALPHABET.charAt(each & 0xff));
            merge(letters.toString(), found);
        }
        return found;
    }

    /** The bytes of a token, in UTF-8; a character may be spread over several tokens. Empty for control tokens. */
    public byte[] bytes(int id) {
        return bytes.getOrDefault(id, new byte[0]);
    }

    private void merge(String letters, List<Integer> found) {
        if (ids.containsKey(letters)) {
            found.add(ids.get(letters));
            return;
        }
        List<String> parts = new ArrayList<>();
        for (char letter : letters.toCharArray()) parts.add(String.valueOf(letter));
        while (true) {
            int best = -1;
            int least = Integer.MAX_VALUE;
            for (int i = 0; i + 1 < parts.size(); i++) {
                Integer rank = ranks.get(parts.get(i) + " " + parts.get(i + 1));
                if (rank != null && rank < least) {
                    least = rank;
                    best = i;
                }
            }
            if (best < 0) break;
            parts.set(best, parts.get(best) + parts.remove(best + 1));
        }
        for (String part : parts) found.add(ids.get(part));
    }

    // The letter of each byte: printable ones stand for themselves, the others for U+0100, U+0101 and so on.
    private static String alphabet() {
        StringBuilder letters = new StringBuilder();
        char next = 0x100;
        for (char each = 0; each < 256; each++) {
            boolean own = each >= 33 && each <= 126 || each >= 161 && each != 173;
            letters.append(own ? each : next++);
        }
        return letters.toString();
    }

    private static byte[] bytesOf(String letters) {
        ByteArrayOutputStream found = new ByteArrayOutputStream();
        for (char letter : letters.toCharArray()) found.write(ALPHABET.indexOf(letter));
        return found.toByteArray();
    }
}

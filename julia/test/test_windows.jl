using LVDJuice: Windows, WindowCoder, window_rows!, num_values, num_given, num_pixels

"The windows of all pixels of images (channels, width, height, images), by their definition: (values of a window, pixels) and what is outside."
function windows_by_definition(images, reach, weights; whole=false)
    C, W, H, N = size(images)
    signed(v) = mod(v + 128, 256) - 128
    rows, outside = Vector{Int}[], Vector{Bool}[]
    for n in 1:N, y in 1:H, x in 1:W
        at(c, dy, dx) = 1 <= y + dy && 1 <= x + dx <= W ? Int(images[c, x + dx, y + dy, n]) : missing
        expected = map(1:C) do c
            left, above, corner = at(c, 0, -1), at(c, -1, 0), at(c, -1, -1)
            ismissing(left) && return coalesce(above, 0)
            ismissing(above) && return left
            moves = sort([0, signed(above - left), signed(above - corner)])
            mod(left + moves[2], 256)
        end
        places = [(dy, dx) for dy in -reach:0 for dx in -reach:reach if (dy, dx) < (0, 0)]
        before = [at(c, place...) for place in places for c in 1:C]
        seen = [max(abs(dy), abs(dx)) == 1 || c == 1 && abs(dy + dx) == 2 && dy * dx == 0 for (dy, dx) in places for c in 1:C]
        medians = repeat(expected, length(before) ÷ C)
        far = [ismissing(b) ? 0 : signed(b - m) for (b, m) in zip(before, medians)]
        expected = mod.(expected .+ floor.(Int, weights' * far ./ 4096 .+ 0.5), 256)
        levels = repeat(expected, length(before) ÷ C)
        own = [at(c, 0, 0) for c in 1:C]
        whole && (seen .= true)
        found = [mod.(before .- levels .+ 128, 256)[seen]; expected; y - 1; x - 1; mod.(own .- expected .+ 128, 256)]
        push!(rows, coalesce.(found, 0))
        push!(outside, ismissing.(found))
    end
    return reduce(hcat, rows), reduce(hcat, outside)
end

some_weights(C, reach, seed) = rand(MersenneTwister(seed), Int32(-400):Int32(900), 2reach * (reach + 1) * C, C)
some_windows(H, W, C, reach) = Windows(H, W, C, reach, some_weights(C, reach, H))

"Images with edges and flat parts, all 256 levels, (channels, width, height, images)."
function some_images(C, W, H, N, seed)
    rng = MersenneTwister(seed)
    smooth = [128 + 40 * sin(x / 2 + n) + 30 * cos(y + c) for c in 1:C, x in 1:W, y in 1:H, n in 1:N]
    return UInt8.(mod.(round.(Int, smooth) .+ rand(rng, -9:9, size(smooth)) .+ 200 .* (rand(rng, size(smooth)...) .< 0.1), 256))
end

function rows_of_windows(w, images, pixels=collect(0:num_pixels(w) * size(images, 4) - 1))
    rows, outside = zeros(UInt8, num_values(w), length(pixels)), fill(false, num_values(w), length(pixels))
    window_rows!(rows, outside, w, reshape(images, :, size(images, 4)), pixels)
    return rows, outside
end

"A circuit over windows, learned from some."
function window_circuit(w, images; latents=3)
    rows, outside = rows_of_windows(w, images)
    V = num_values(w)
    c = hclt([0; [max(1, v ÷ 2) for v in 2:V]]; latents=latents, categories=256, seed=1)
    finish!(EMJob(c, Masked(rows, outside), ones(Int32, size(rows, 2)); epochs=3, batch_size=64))
    return c
end

"log p of each pixel given those before it, (pixels, images): exact, by two likelihoods of the circuit."
function pixel_scores(c, w, images)
    rows, outside = rows_of_windows(w, images)
    given = copy(outside)
    given[num_given(w) + 1:end, :] .= true
    found = log_likelihood(c, Masked(rows, outside)) .- log_likelihood(c, Masked(rows, given))
    return reshape(found, num_pixels(w), :)
end

@testset "windows" begin
    for (C, W, H, N, reach) in ((3, 5, 4, 2, 2), (1, 3, 6, 3, 1), (3, 1, 4, 2, 3), (1, 7, 1, 1, 2))
        images = some_images(C, W, H, N, C + W)
        w = some_windows(H, W, C, reach)
        rows, outside = rows_of_windows(w, images)
        @test (rows, outside) == windows_by_definition(images, reach, w.weights)
        every = Windows(H, W, C, reach, w.weights, true)
        @test rows_of_windows(every, images) == windows_by_definition(images, reach, w.weights; whole=true)
        some = [N * W * H - 1, 0, W ÷ 2]
        @test rows_of_windows(w, images, some) == (rows[:, some .+ 1], outside[:, some .+ 1])
    end
    @test [LVDJuice.part_of_image(y, 100) for y in (0, 3, 4, 99)] == [0, 0, 1, 31]
    @test_throws DimensionMismatch Windows(2, 2, 1, 1, zeros(Int32, 3, 1))
    w = some_windows(2, 2, 1, 1)
    @test_throws ArgumentError rows_of_windows(w, some_images(1, 2, 2, 1, 0), [4])
    @test_throws DimensionMismatch rows_of_windows(w, some_images(1, 2, 3, 1, 0))
end

@testset "windows as a codec" begin
    for (C, W, H, reach) in ((3, 4, 5, 2), (1, 6, 3, 1))
        w = some_windows(H, W, C, reach)
        images = some_images(C, W, H, 37, 1)  # neither one tile nor two
        c = window_circuit(w, images)
        coder, X = WindowCoder(c, w), Int32.(reshape(images, :, 37))
        bits, tables = coded_bits(coder, X)
        @test close_to(bits, -vec(sum(pixel_scores(c, w, images), dims=1)) ./ log(2); rtol=1e-5)
        @test tables == 2 * C * W * H
        job, taken, out = LVDJuice.coding(coder, X, false), Vector{Int}[], zeros(LVDJuice.widest_table(coder) * 37)
        while LVDJuice.next_table!(out, job, Int32[]) > 0
            LVDJuice.own_symbols!(job)
            push!(taken, copy(job.symbol))
        end
        job, symbols = LVDJuice.coding(coder, zeros(Int32, size(X)), true), zeros(Int32, 37)
        while LVDJuice.next_table!(out, job, symbols) > 0
            symbols = Int32.(popfirst!(taken))
        end
        @test job.X == X
    end
end

@testset "draws of windows" begin
    w = some_windows(3, 3, 1, 1)
    images = some_images(1, 3, 3, 40, 2)
    c = window_circuit(w, images)
    coder, X = WindowCoder(c, w), Int32.(reshape(images, :, 40))
    hidden = fill(false, 9, 40)
    hidden[5:9, :] .= true
    drawn = copy(X)
    LVDJuice.draw_pixels!(drawn, hidden, coder, 3, 0)
    @test drawn[1:4, :] == X[1:4, :] && drawn[5:9, :] != X[5:9, :]
    again = copy(X[:, 11:40])
    LVDJuice.draw_pixels!(again, hidden[:, 11:40], coder, 3, 10)  # the same numbers of images
    @test again == drawn[:, 11:40]
    # Of many draws of one pixel given the rest the shares are its conditional probabilities.
    N, at = 4000, 9
    X = repeat(X[:, 1:1], 1, N)
    hidden = fill(false, 9, N)
    hidden[at, :] .= true
    LVDJuice.draw_pixels!(X, hidden, coder, 5, 0)
    every = UInt8.(repeat(reshape(images[:, :, :, 1], 9, 1), 1, 256))
    every[at, :] .= 0:255
    p = exp.(pixel_scores(c, w, reshape(every, 1, 3, 3, 256))[at, :])
    @test sum(p) ≈ 1 atol = 1e-5
    found = [count(==(v), X[at, :]) for v in 0:255]
    @test all(abs.(found .- N .* p) .<= 5 .* sqrt.(N .* p .* (1 .- p)) .+ 5)
end

# Where the parameters of a new circuit start: at random, or near what was counted.

# A unit's parameters start as its counts and so many more samples, which are the same for all units but for a perturbation.
const ADDED_SAMPLES = 5.0

"Where parameters start: random numbers, how far they spread, and room to work in."
struct Starter
    rng::SplitMix
    perturbation::Float64
    room::Vector{Float64}
end

function Starter(seed, perturbation)
    0 <= perturbation < 1 || throw(ArgumentError("perturbation = $perturbation: want a number in [0, 1)"))
    return Starter(SplitMix(seed), perturbation, Float64[])
end

"Fills each of `units` in with probabilities in proportion to U(1 - perturbation, 1 + perturbation)."
function fill_in!(start::Starter, units, ::Nothing=nothing)
    for out in units
        perturb_into!(start, out, Iterators.repeated(1.0, length(out)))
    end
end

"Fills each of `units` in with the shares of a column of `counts`, and `ADDED_SAMPLES` that are spread like all of them, but perturbed."
function fill_in!(start::Starter, units, counts::Matrix)
    common = vec(sum(counts, dims=2)) .+ 1
    for (k, out) in enumerate(units)
        perturb_into!(start, out, common)
        counted = sum(view(counts, :, k))
        counted == 0 && continue
        for i in eachindex(out)
            out[i] = (counts[i, k] + ADDED_SAMPLES * out[i]) / (counted + ADDED_SAMPLES)
        end
    end
end

"Probabilities in proportion to `shares` times U(1 - perturbation, 1 + perturbation)."
function perturb_into!(start::Starter, out, shares)
    low, spread, total, room = 1 - start.perturbation, 2 * start.perturbation, 0.0, resize!(start.room, length(out))
    for (i, share) in enumerate(shares)
        @inbounds room[i] = share * (low + spread * uniform!(start.rng))
        @inbounds total += room[i]  # one by one: `sum` adds in another order from one Julia version to the next
    end
    for i in eachindex(out)
        @inbounds out[i] = room[i] / total
    end
    pause(5 * length(out))
end
